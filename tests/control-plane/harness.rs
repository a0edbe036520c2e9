//! The proxy does to requests what it is told, and nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    authorization::v1::SelfSubjectAccessReview,
    batch::v1::Job,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Error,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
};
use mayfly_tests::{
    control_plane::{Act, Door, Request, Rule, Space},
    each_in_a_space, until,
};
use serde_json::json;
use tokio::time::timeout;

use crate::SOON;

/// For what should not come at all.
const NEVER: Duration = Duration::from_secs(1);

each_in_a_space!(
    a_dropped_answer_leaves_the_object_behind,
    a_kept_request_arrives_when_it_is_delivered,
    a_closed_door_refuses_and_an_open_one_lets_through_again,
    a_hung_request_stays_hung_while_new_ones_pass,
    a_refusal_comes_from_the_proxy_alone,
    a_watch_streams_through_the_proxy,
);

async fn jobs(space: &Space<'_>) -> Result<Api<Job>> {
    Ok(Api::namespaced(space.client("test").await?, &space.namespace))
}

/// A Job that makes no pod.
fn job(name: &str) -> Result<Job> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "suspend": true, "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "none", "image": "none" }],
        } } },
    }))?)
}

fn is_create(request: &Request) -> bool {
    request.is("create", "jobs")
}

async fn a_dropped_answer_leaves_the_object_behind(space: &Space<'_>) -> Result<()> {
    space.proxy.rule(Rule::new("create", "jobs", Act::DropAnswer).nth(2));
    let jobs = jobs(space).await?;
    for (name, answered) in [("a", true), ("b", false), ("c", true)] {
        let created = jobs.create(&PostParams::default(), &job(name)?).await;
        ensure!(created.is_ok() == answered, "{name}: {created:?}");
        ensure!(!matches!(created, Err(Error::Api(_))), "{name} was answered: {created:?}");
    }
    ensure!(space.jobs().await?.len() == 3);
    let names: Vec<_> = space.proxy.matching(is_create).into_iter().filter_map(|one| one.name).collect();
    ensure!(names == ["a", "b", "c"], "{names:?}");
    Ok(())
}

async fn a_kept_request_arrives_when_it_is_delivered(space: &Space<'_>) -> Result<()> {
    space.proxy.rule(Rule::new("create", "jobs", Act::Keep).named("b"));
    let jobs = jobs(space).await?;
    jobs.create(&PostParams::default(), &job("a")?).await?;
    let params = PostParams::default();
    let kept = job("b")?;
    ensure!(timeout(NEVER, jobs.create(&params, &kept)).await.is_err(), "it was answered");
    ensure!(space.proxy.kept() == 1);
    ensure!(space.jobs().await?.len() == 1, "it was delivered");
    ensure!(space.proxy.deliver().await? == [201]);
    ensure!(space.jobs().await?.len() == 2, "it was not delivered");
    ensure!(space.proxy.deliver().await?.is_empty());
    Ok(())
}

async fn a_closed_door_refuses_and_an_open_one_lets_through_again(space: &Space<'_>) -> Result<()> {
    let jobs = jobs(space).await?;
    jobs.list(&ListParams::default()).await?;
    space.proxy.set(Door::Refused);
    until("connections are refused", SOON, async || Ok(jobs.list(&ListParams::default()).await.is_err()))
        .await?;
    let asked = space.proxy.requests().len();
    ensure!(jobs.create(&PostParams::default(), &job("a")?).await.is_err());
    ensure!(space.proxy.requests().len() == asked, "a request came in");
    space.proxy.set(Door::Open);
    until("they are accepted", SOON, async || Ok(jobs.list(&ListParams::default()).await.is_ok())).await
}

async fn a_hung_request_stays_hung_while_new_ones_pass(space: &Space<'_>) -> Result<()> {
    let jobs = jobs(space).await?;
    jobs.list(&ListParams::default()).await?;
    space.proxy.set(Door::Hung);
    let all = ListParams::default();
    let mut hung = std::pin::pin!(jobs.list(&all));
    ensure!(timeout(NEVER, &mut hung).await.is_err(), "it was answered");
    space.proxy.set(Door::Open);
    timeout(SOON, jobs.list(&all)).await.context("a new one hangs as well")??;
    ensure!(timeout(NEVER, &mut hung).await.is_err(), "it was answered after all");
    Ok(())
}

async fn a_refusal_comes_from_the_proxy_alone(space: &Space<'_>) -> Result<()> {
    let overloaded = Act::Answer { status: 429, retry_after: Some(7) };
    space.proxy.rule(Rule::new("create", "*", overloaded).from("test"));
    let jobs = jobs(space).await?;
    let refused = jobs.create(&PostParams::default(), &job("a")?).await;
    ensure!(matches!(&refused, Err(Error::Api(status)) if status.code == 429), "{refused:?}");
    ensure!(space.proxy.matching(is_create).iter().all(|request| request.status.is_none()));
    ensure!(space.jobs().await?.is_empty(), "it was delivered");
    // Others are not meant, nor anything else.
    let other: Api<Job> = Api::namespaced(space.client("other").await?, &space.namespace);
    other.create(&PostParams::default(), &job("b")?).await?;
    jobs.list(&ListParams::default()).await?;
    Ok(())
}

/// Scalers don't watch, so their Role does not let them.
async fn may_watch(space: &Space<'_>) -> Result<()> {
    let name = json!({ "name": "watch" });
    let rules = json!([{ "apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["watch"] }]);
    space.create::<Role>(json!({ "metadata": name, "rules": rules })).await?;
    let binding = json!({
        "metadata": name,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "watch" },
        "subjects": [{ "kind": "ServiceAccount", "name": "test-scaler", "namespace": space.namespace }],
    });
    space.create::<RoleBinding>(binding).await?;
    // Authorization learns of it a moment later.
    let question = json!({ "spec": { "resourceAttributes": {
        "namespace": space.namespace, "verb": "watch", "group": "batch", "resource": "jobs",
    } } });
    let questions: Api<SelfSubjectAccessReview> = Api::all(space.client("asking").await?);
    let question = serde_json::from_value(question)?;
    until("watching is allowed", SOON, async || {
        let answer = questions.create(&PostParams::default(), &question).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    })
    .await
}

async fn a_watch_streams_through_the_proxy(space: &Space<'_>) -> Result<()> {
    let jobs = jobs(space).await?;
    may_watch(space).await?;
    let version = jobs.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let mut events = jobs.watch(&WatchParams::default(), &version).await?.boxed();
    for name in ["a", "b"] {
        jobs.create(&PostParams::default(), &job(name)?).await?;
        let added = async {
            loop {
                match events.try_next().await? {
                    Some(WatchEvent::Added(job)) => return anyhow::Ok(job.metadata.name),
                    Some(_) => {}
                    None => return Ok(None),
                }
            }
        };
        let added = timeout(SOON, added).await.context("no event came")??;
        ensure!(added.as_deref() == Some(name), "{added:?}");
    }
    ensure!(space.proxy.matching(|request| request.is("watch", "jobs")).len() == 1);
    Ok(())
}
