//! What holds of a scaler's requests in every test, whatever it tries.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Request, objects};

/// A launch rests on a listing that is at most 2 s old (DESIGN §6); reading its template may take another
/// second, and a busy machine a while.
const LISTING_FRESH: Duration = Duration::from_secs(5);

/// Checks all of it.
pub(super) fn hold(requests: &[Request]) -> Result<()> {
    nothing_forbidden(requests)?;
    nothing_foreign_listed(requests)?;
    launched_on_knowledge(requests)
}

/// A namespace may hold any number of objects of others: nothing is listed without a selector of ours.
fn nothing_foreign_listed(requests: &[Request]) -> Result<()> {
    // The harness has clients of its own; only scalers read the state.
    let scalers: BTreeSet<_> =
        requests.iter().filter(|one| one.is("get", "configmaps")).map(|one| &one.client).collect();
    let selects = |request: &Request| {
        let mut query = request.query.split('&').filter_map(|pair| pair.split_once('='));
        let selector = if request.resource == "events" { "fieldSelector" } else { "labelSelector" };
        query.any(|(name, value)| name == selector && !value.is_empty())
    };
    let lists =
        |request: &&Request| matches!(request.verb, "list" | "watch") && !request.resource.starts_with('/');
    let mut listed = requests.iter().filter(|request| scalers.contains(&request.client)).filter(lists);
    let foreign = listed.find(|request| !selects(request));
    ensure!(foreign.is_none(), "listed without a selector: {foreign:?}");
    Ok(())
}

/// A full quota is the only thing for which a scaler may be turned away.
fn nothing_forbidden(requests: &[Request]) -> Result<()> {
    let is_role = |request: &&Request| {
        let told = request.message.as_deref().unwrap_or_default();
        request.status == Some(403) && !told.contains("exceeded quota")
    };
    let forbidden = requests.iter().find(is_role);
    ensure!(forbidden.is_none(), "beyond the documented Role: {forbidden:?}");
    Ok(())
}

/// Whoever launches has read the state and then listed all Jobs and pods just before: of each, what it heard
/// last was an answer and no error.
fn launched_on_knowledge(requests: &[Request]) -> Result<()> {
    let ours =
        |request: &Request| request.name.as_ref().is_some_and(|name| name.starts_with(objects::TEMPLATE));
    let is_launch = |request: &Request| request.is("create", "jobs") && ours(request);
    for (index, launch) in requests.iter().enumerate().filter(|(_, request)| is_launch(request)) {
        let heard = |verb: &str, resource: &str| {
            let mut before = requests[..index].iter().rev().filter(|one| one.client == launch.client);
            let in_time = |one: &&Request| one.answered.is_some_and(|at| at < launch.at);
            let heard = before.find(|one| one.is(verb, resource) && in_time(one));
            let heard = heard.with_context(|| format!("launched without knowing {resource}: {launch:?}"))?;
            ensure!(heard.succeeded(), "launched although {resource} are unknown: {heard:?}, {launch:?}");
            let age = launch.at - heard.at;
            ensure!(age <= LISTING_FRESH, "launched on {resource} of {age:?} ago: {launch:?}");
            Ok(heard)
        };
        let state = heard("get", "configmaps")?;
        for resource in ["jobs", "pods"] {
            let listed = heard("list", resource)?;
            ensure!(listed.at >= state.at, "listed before the state was read: {listed:?}, {launch:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hyper::Method;
    use tokio::time::Instant;

    use super::*;

    fn request(method: &Method, resource: &str, status: u16, message: &str) -> Request {
        let uri = format!("/api/v1/namespaces/n/{resource}").parse().unwrap();
        let body = if *method == Method::POST { r#"{"metadata":{"name":"test-pool-abcd-1"}}"# } else { "" };
        let request = Request::new(Instant::now(), "scaler".to_owned(), method, &uri, body.as_bytes());
        let message = Some(message.to_owned());
        Request { status: Some(status), answered: Some(Instant::now()), message, ..request }
    }

    #[test]
    fn only_a_full_quota_may_turn_a_scaler_away() {
        let quota = "jobs.batch \"a-1\" is forbidden: exceeded quota: q, requested: …";
        let quota = request(&Method::POST, "pods", 403, quota);
        assert!(hold(&[quota, request(&Method::GET, "pods", 409, "already exists")]).is_ok());
        let role = "secrets is forbidden: User \"…\" cannot list resource \"secrets\"";
        assert!(hold(&[request(&Method::GET, "secrets", 403, role)]).is_err());
    }

    #[test]
    fn a_scaler_lists_nothing_without_a_selector() {
        let read = |resource| request(&Method::GET, resource, 200, "");
        let state = || read("configmaps/c");
        assert!(hold(&[state(), read("pods?labelSelector=a%3Db&limit=5")]).is_ok());
        assert!(hold(&[state(), read("events?fieldSelector=a%3Db")]).is_ok());
        assert!(hold(&[state(), read("pods?limit=5")]).is_err());
        assert!(hold(&[state(), read("pods?labelSelector=")]).is_err());
        assert!(hold(&[state(), read("events?labelSelector=a%3Db")]).is_err());
        assert!(hold(&[read("pods")]).is_ok(), "a client of the harness");
    }

    #[test]
    fn a_launch_needs_a_success_of_everything_that_was_heard_last() {
        let read = |resource: &str, status| {
            let selected = format!("{resource}?labelSelector=a%3Db");
            request(&Method::GET, &selected, status, "")
        };
        let launch = || request(&Method::POST, "jobs", 201, "");
        let known = || [read("configmaps/c", 200), read("jobs", 200), read("pods", 200)].to_vec();
        assert!(hold(&[known(), vec![launch()]].concat()).is_ok());
        assert!(hold(&[known(), vec![read("pods", 503), launch()]].concat()).is_err());
        assert!(hold(&[read("configmaps/c", 200), read("jobs", 200), launch()]).is_err());
        assert!(
            hold(&[known(), vec![read("configmaps/c", 200), read("jobs", 200), launch()]].concat()).is_err()
        );
        let mut late = [known(), vec![launch()]].concat();
        late[3].at += Duration::from_secs(6);
        assert!(hold(&late).is_err());
    }
}
