//! What is told on a pool's template, and that nothing depends on it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{batch::v1::CronJob, core::v1::Event};
use kube::api::ListParams;
use mayfly_tests::{
    control_plane::{Act, Rule, Script, Space},
    each_in_a_space, until,
};
use serde_json::json;

use crate::{SOON, alive, ends, ready, say, tells, waiting};

/// Between two Events of a scaler.
const EACH: Duration = Duration::from_secs(2);

each_in_a_space!(launches_holds_and_failures_are_told_on_the_template, launching_does_not_depend_on_events,);

/// What is told on the template: the messages, by reason.
pub(crate) async fn told(space: &Space<'_>) -> Result<BTreeMap<String, Vec<String>>> {
    let template =
        space.api::<CronJob>().list(&ListParams::default()).await?.items.pop().context("no template")?;
    let uid = template.metadata.uid.context("a template without uid")?;
    let about = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
    let mut told = BTreeMap::<_, Vec<_>>::new();
    for event in space.api::<Event>().list(&about).await?.items {
        told.entry(event.reason.unwrap_or_default()).or_default().push(event.message.unwrap_or_default());
    }
    Ok(told)
}

/// Waits until this is told, with these words.
pub(crate) async fn is_told(space: &Space<'_>, reason: &str, words: &str) -> Result<()> {
    until(&format!("{reason} is told with {words:?}"), SOON, async || {
        let told = told(space).await?;
        Ok(told.get(reason).is_some_and(|texts| texts.iter().any(|text| text.contains(words))))
    })
    .await
}

async fn launches_holds_and_failures_are_told_on_the_template(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 1).await?;
    let limited_to =
        |most: u32| json!({ "launch_interval": "500ms", "max_workers": most, "cooldown_base": "2s" });
    space.configure(&limited_to(3))?;
    let mut first = space.scaler("first", &[])?;
    let mut second = space.scaler("second", &[])?;
    space.jobs_when("one waits for a node", SOON, |jobs| ready(jobs) == 1 && alive(jobs) == 2).await?;
    is_told(space, "Launched", "10 messages wait").await?;
    is_told(space, "Ready", "s after it was launched").await?;
    tells(space, &first, "WaitingForPending", "no room on any node").await?;
    let is_unplaced = |pod: &&k8s_openapi::api::core::v1::Pod| {
        pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none())
    };
    let pods = space.pods().await?;
    let pod = pods.iter().find(is_unplaced).context("every pod has a node")?;
    let words = "pod didn't trigger scale-up: 1 max node group size reached";
    say(space, pod, 1, "cluster-autoscaler", "NotTriggerScaleUp", words).await?;
    is_told(space, "AtCapacity", "max node group size reached").await?;
    space.kubelet.node("b", 5).await?;
    is_told(space, "Resumed", "there is room again").await?;
    space.jobs_when("three workers are ready", SOON, |jobs| ready(jobs) == 3).await?;
    // The one that comes next crashes.
    space.kubelet.all(Script::Ends { code: 3, report: None });
    space.configure(&limited_to(4))?;
    is_told(space, "Failed", "ended with exit code 3").await?;
    is_told(space, "CoolingDown", "failed workers").await?;

    for name in ["first", "second"] {
        let written =
            space.proxy.matching(|request| request.client == name && request.is("create", "events"));
        for pair in written.windows(2) {
            // The request may have waited for its turn.
            ensure!(pair[1].at - pair[0].at > EACH / 2, "two Events in {:?}", pair[1].at - pair[0].at);
        }
    }
    ends(&mut first.process).await?;
    ends(&mut second.process).await?;
    client.close().await
}

async fn launching_does_not_depend_on_events(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 5).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 3 }))?;
    // The first is never answered, the others are refused.
    space.proxy.rule(Rule::new("create", "events", Act::Keep).nth(1));
    space.proxy.rule(Rule::new("create", "events", Act::Answer { status: 500, retry_after: None }));
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("three workers are ready", SOON, |jobs| ready(jobs) == 3).await?;
    scaler.decides("AtMaximum", SOON).await?;
    space.proxy.seen("an Event is tried", SOON, |request| request.is("create", "events")).await?;
    ensure!(told(space).await?.is_empty());
    ends(&mut scaler.process).await?;
    client.close().await
}
