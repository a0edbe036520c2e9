//! What mayfly adds to the start of a pod: Jobs of a pool's template, and in turn the same Jobs with a program that
//! only says its version, on a node that has their image.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, Job, JobSpec},
        core::v1::Pod,
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams, PostParams},
};
use mayfly_tests::{bed::rounds, eventually};
use serde_json::json;

use crate::site::{self, Site};

/// How long a pod may take to say something.
const SOON: Duration = Duration::from_secs(60);
/// What mayfly may add, in milliseconds.
const TARGET: f64 = 100.0;

#[test]
fn a_worker_consumes_hardly_later_than_a_bare_pod_runs() {
    site::run("lead", async |site| {
        // People start these workers, the scaler none.
        site.install("install", &site.values(&json!({ "max_workers": 0 }), &json!({}))).await?;
        let templates: Api<CronJob> = Api::namespaced(site.client.clone(), &site.namespace);
        let template = templates.list(&ListParams::default()).await?.items.into_iter().next();
        let worker = template.and_then(|it| it.spec?.job_template.spec).context("no template")?;
        let bare = bare(&worker)?;
        let (mut to_consumer, mut to_program) = (Vec::new(), Vec::new());
        for round in 0..rounds(20) {
            // What the first one pays for is not the pod's start.
            let warm_up = round == 0;
            let consumer = says(site, &format!("worker-{round}"), &worker, "\"ready\"").await?;
            let program = says(site, &format!("bare-{round}"), &bare, "mayfly-worker").await?;
            site.tell(&format!("POST to consumer {consumer:.0} ms, to a bare program {program:.0} ms"));
            if !warm_up || rounds(20) == 1 {
                to_consumer.push(consumer);
                to_program.push(program);
            }
        }
        let (consumer, program) = (median(to_consumer)?, median(to_program)?);
        let added = consumer - program;
        site.tell(&format!("medians: {consumer:.0} ms, {program:.0} ms; mayfly adds {added:.0} ms"));
        ensure!(rounds(20) == 1 || added <= TARGET, "mayfly adds {added:.0} ms");
        site.script("uninstall")
            .run("uninstall", site::SCRIPT_LIMIT)
            .await?
            .exits_with(0, Duration::ZERO)
            .await
    });
}

/// The same Job with a program that ends at once, and that is no worker.
fn bare(worker: &JobSpec) -> Result<JobSpec> {
    let mut bare = worker.clone();
    bare.template.metadata = None;
    let container = bare.template.spec.as_mut().and_then(|spec| spec.containers.first_mut());
    let container = container.context("a template without container")?;
    container.args = Some(vec!["--version".to_owned()]);
    container.readiness_probe = None;
    Ok(bare)
}

/// The milliseconds from the Job's POST to the first line of its pod that holds `words`, by the node's clock.
async fn says(site: &Site, name: &str, spec: &JobSpec, words: &str) -> Result<f64> {
    let jobs: Api<Job> = Api::namespaced(site.client.clone(), &site.namespace);
    let pods: Api<Pod> = Api::namespaced(site.client.clone(), &site.namespace);
    let mut job = Job { spec: Some(spec.clone()), ..Job::default() };
    job.metadata.name = Some(name.to_owned());
    let posted = Timestamp::try_from(SystemTime::now())?;
    jobs.create(&PostParams::default(), &job).await?;
    let of_job = ListParams::default().labels(&format!("job-name={name}"));
    let parameters = LogParams { timestamps: true, ..LogParams::default() };
    let said = eventually(&format!("{name} says {words}"), SOON, async || {
        let Some(pod) = pods.list(&of_job).await?.items.into_iter().next() else { return Ok(None) };
        // There is no log before the container runs.
        let Ok(log) = pods.logs(&pod.name_any(), &parameters).await else { return Ok(None) };
        let line = log.lines().find(|line| line.contains(words));
        line.map(|line| Ok(line.split(' ').next().context("a line without time")?.parse::<Timestamp>()?))
            .transpose()
    })
    .await?;
    Ok(said.duration_since(posted).as_secs_f64() * 1000.0)
}

fn median(mut samples: Vec<f64>) -> Result<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().context("nothing was measured")
}
