//! The publisher's image, run once in the cluster: the demo itself may not reach the broker.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Container, ContainerState, Pod, PodSpec, ResourceRequirements},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, LogParams, PostParams},
};
use serde_json::Value;

use super::{PAUSE, limited};
use crate::stage::Remains;

/// Where the chart names the image.
const IMAGE: &str = "mayfly/publisher-image";
/// The label of all that belongs to a release.
const RELEASE: &str = "mayfly/release";
/// How long it may take, a node for it included.
const LIMIT: Duration = Duration::from_mins(5);
/// Why a container waits that is not worth waiting for.
const HOPELESS: [&str; 3] = ["Image", "Config", "Error"];
/// How long it is waited for nevertheless: the second try may be better.
const HOPELESS_LIMIT: Duration = Duration::from_secs(20);

/// Runs `mayfly-publisher ARGUMENTS` in a pod that is like the scaler's, and returns its exit code and what
/// it printed.
async fn run(pods: &Api<Pod>, scaler: &Deployment, arguments: &[&str]) -> Result<(i32, String)> {
    let pod = pod(scaler, arguments).context("the scaler's Deployment is not one of our chart")?;
    let pod = limited("create a publisher's pod", pods.create(&PostParams::default(), &pod)).await?;
    let name = pod.name_any();
    let ended = ended(pods, &name).await;
    let printed = match ended {
        Ok(_) => limited("read a publisher's log", pods.logs(&name, &LogParams::default())).await,
        Err(_) => Ok(String::new()),
    };
    let delete = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    limited("delete a publisher's pod", pods.delete(&name, &delete)).await?;
    Ok((ended?, printed?))
}

/// What waits in the queues, and who consumes from them.
pub(super) async fn inspect(pods: &Api<Pod>, scaler: &Deployment, queues: &[String]) -> Result<Remains> {
    let mut arguments = vec!["inspect", "--output", "json"];
    arguments.extend(queues.iter().map(String::as_str));
    let (code, printed) = run(pods, scaler, &arguments).await?;
    ensure!(code == 0, "the publisher cannot read the queues (exit code {code}): {}", line(&printed));
    remains(&printed).with_context(|| format!("the publisher printed {printed:?}"))
}

/// Deletes the queue with its companions.
pub(super) async fn delete(pods: &Api<Pod>, scaler: &Deployment, queue: &str) -> Result<()> {
    let (code, printed) = run(pods, scaler, &["delete", queue, "--with-messages"]).await?;
    ensure!(code == 0, "the publisher cannot delete the queues (exit code {code}): {}", line(&printed));
    Ok(())
}

fn line(printed: &str) -> String {
    printed.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn remains(printed: &str) -> Option<Remains> {
    let rows: Vec<Value> = serde_json::from_str(printed.lines().find(|line| line.starts_with('['))?).ok()?;
    let sum = |key: &str| rows.iter().map(|row| row[key].as_u64()).sum::<Option<u64>>();
    Some(Remains {
        queues: rows.len(),
        ready: sum("ready")?,
        consumers: sum("consumers")?,
        unacked: None,
        connections: None,
    })
}

/// Whatever lets the scaler's pod reach its image, a node and the broker's Secret, the publisher needs too.
fn pod(scaler: &Deployment, arguments: &[&str]) -> Option<Pod> {
    let template = &scaler.spec.as_ref()?.template;
    let like = template.spec.as_ref()?;
    let container = like.containers.first()?;
    let environment = container.env.iter().flatten();
    let of_broker = environment.filter(|variable| variable.name.starts_with("MAYFLY_BROKER_")).cloned();
    let mut resources = ResourceRequirements::default();
    resources.requests = container.resources.as_ref().and_then(|resources| resources.requests.clone());
    let publisher = Container {
        name: "publisher".to_owned(),
        image: Some(scaler.annotations().get(IMAGE)?.clone()),
        image_pull_policy: container.image_pull_policy.clone(),
        args: Some(arguments.iter().map(|&argument| argument.to_owned()).collect()),
        env: Some(of_broker.collect()),
        resources: Some(resources),
        security_context: container.security_context.clone(),
        volume_mounts: container.volume_mounts.clone(),
        ..Container::default()
    };
    let spec = PodSpec {
        containers: vec![publisher],
        restart_policy: Some("Never".to_owned()),
        active_deadline_seconds: i64::try_from(LIMIT.as_secs()).ok(),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: like.image_pull_secrets.clone(),
        security_context: like.security_context.clone(),
        node_selector: like.node_selector.clone(),
        tolerations: like.tolerations.clone(),
        volumes: like.volumes.clone(),
        ..PodSpec::default()
    };
    let mut labels = template.metadata.as_ref()?.labels.clone()?;
    labels.insert("app.kubernetes.io/component".to_owned(), "publisher".to_owned());
    // By which `bin/uninstall` finds one that an interrupted demo has left.
    labels.extend(scaler.labels().get_key_value(RELEASE).map(|(key, value)| (key.clone(), value.clone())));
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-publisher-", labels.get("app.kubernetes.io/instance")?)),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    Some(Pod { metadata, spec: Some(spec), status: None })
}

async fn ended(pods: &Api<Pod>, name: &str) -> Result<i32> {
    let begin = Instant::now();
    loop {
        let pod = limited("look at a publisher's pod", pods.get(name)).await?;
        let state = state(&pod);
        if let Some(end) = state.and_then(|state| state.terminated.as_ref()) {
            return Ok(end.exit_code);
        }
        let waits = state.and_then(|state| state.waiting.as_ref()?.reason.as_deref());
        let hopeless = waits.is_some_and(|reason| HOPELESS.iter().any(|word| reason.contains(word)));
        if begin.elapsed() > if hopeless { HOPELESS_LIMIT } else { LIMIT } {
            bail!("pod {name} does not get to its end ({})", waits.unwrap_or("no node yet"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn state(pod: &Pod) -> Option<&ContainerState> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()?.state.as_ref()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scaler() -> Deployment {
        let deployment = json!({
            "metadata": {
                "name": "d-scaler",
                "labels": { RELEASE: "d" },
                "annotations": { IMAGE: "r/mayfly-publisher:1" },
            },
            "spec": { "selector": {}, "template": {
                "metadata": { "labels": {
                    "app.kubernetes.io/instance": "d", "app.kubernetes.io/component": "scaler",
                } },
                "spec": {
                    "serviceAccountName": "d-scaler",
                    "imagePullSecrets": [{ "name": "registry" }],
                    "containers": [{
                        "name": "scaler",
                        "image": "r/mayfly-scaler:1",
                        "env": [
                            { "name": "MAYFLY_CONFIG", "value": "/etc/mayfly/mayfly.yaml" },
                            { "name": "MAYFLY_BROKER_URL_FILE", "value": "/run/secrets/mayfly/broker-url" },
                        ],
                        "volumeMounts": [{ "name": "mayfly-broker", "mountPath": "/run/secrets/mayfly" }],
                    }],
                    "volumes": [{ "name": "mayfly-broker", "secret": { "secretName": "d-broker" } }],
                },
            } },
        });
        serde_json::from_value(deployment).unwrap()
    }

    #[test]
    fn the_publisher_gets_what_the_scaler_has_but_for_its_rights_and_its_label() {
        let pod = pod(&scaler(), &["inspect", "q"]).unwrap();
        assert_eq!(pod.labels()["app.kubernetes.io/component"], "publisher");
        assert_eq!(pod.labels()[RELEASE], "d");
        let spec = pod.spec.unwrap();
        assert_eq!(spec.service_account_name, None);
        assert_eq!(spec.image_pull_secrets.unwrap()[0].name, "registry");
        let container = &spec.containers[0];
        assert_eq!(container.image.as_deref(), Some("r/mayfly-publisher:1"));
        assert_eq!(container.args.as_deref().unwrap(), ["inspect", "q"]);
        let names: Vec<_> = container.env.iter().flatten().map(|variable| variable.name.as_str()).collect();
        assert_eq!(names, ["MAYFLY_BROKER_URL_FILE"]);
        assert_eq!(container.volume_mounts.as_ref().unwrap()[0].name, "mayfly-broker");
        assert_eq!(spec.volumes.unwrap()[0].name, "mayfly-broker");
    }

    #[test]
    fn what_the_queues_hold_is_summed_up_and_what_was_not_read_is_not_zero() {
        let row = |ready: Option<u32>| json!({ "queue": "q", "ready": ready, "consumers": 2 });
        let printed = format!("a log line\n{}\n", json!([row(Some(3)), row(Some(4))]));
        let expected = Remains { queues: 2, ready: 7, consumers: 4, ..Remains::default() };
        assert_eq!(remains(&printed), Some(expected));
        assert_eq!(remains(&json!([row(Some(3)), row(None)]).to_string()), None);
    }
}
