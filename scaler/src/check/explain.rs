//! What a configuration means, in words.

use std::{fmt, time::Duration};

use mayfly_broker::suspect_queue;
use mayfly_service::tls::TlsFiles;
use serde::Serialize;

use crate::config::{
    BrokerSource, Config, CounterSource, CountersConfig, LauncherConfig, PoolConfig, SloConfig, Start,
    WARM_IDLE, Window, WorkerTemplate, words,
};

/// A node hardly comes sooner.
const SHORT_SLO: Duration = Duration::from_mins(3);
/// A waiting time that people hardly want.
const LONG_WAIT: Duration = Duration::from_hours(1);

/// The whole configuration.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Explanation {
    instance: String,
    general: Vec<Sentence>,
    pools: Vec<PoolExplanation>,
    warnings: Vec<String>,
}

/// One pool.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct PoolExplanation {
    pool: String,
    queues: Vec<String>,
    sentences: Vec<Sentence>,
    warnings: Vec<String>,
}

/// One thing to know.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Sentence {
    topic: &'static str,
    text: String,
}

/// Puts the configuration into words; no environment value and no password is among them.
pub(super) fn explain(config: &Config) -> Explanation {
    let mut warnings = Vec::new();
    if config.quota == Some(0) {
        warnings.push("quota 0: nothing is ever launched".to_owned());
    }
    Explanation {
        instance: config.instance.clone(),
        general: general(config),
        pools: config.pools.iter().map(|pool| explain_pool(pool, config)).collect(),
        warnings,
    }
}

fn trust(tls: &TlsFiles) -> String {
    let TlsFiles { ca, cert, key: _ } = tls;
    let ca = ca.iter().map(|file| format!("; the authorities in {} are trusted too", file.display()));
    ca.chain(cert.iter().map(|file| format!("; shows the certificate {}", file.display()))).collect()
}

fn general(config: &Config) -> Vec<Sentence> {
    let mut sentences =
        vec![sentence("looks", format!("at the queues every {}", words(config.check_interval)))];
    sentences.push(sentence(
        "broker",
        match &config.broker {
            BrokerSource::UrlFile(file) => format!("its url is read from the file {}", file.display()),
            BrokerSource::UrlEnv(variable) => format!("its url is read from the variable {variable}"),
        } + &trust(&config.broker_tls),
    ));
    sentences.push(sentence("ages", ages(config.counters.as_ref())));
    sentences.extend(place(&config.launcher, &config.instance));
    sentences.push(sentence(
        "unknown",
        "while the broker, the workers or the state cannot be seen, nothing is launched".to_owned(),
    ));
    if let Some(quota) = config.quota {
        let shared = if config.pools.len() > 1 {
            ", shared by weight; an idle part is lent until its workers end"
        } else {
            ""
        };
        sentences.push(sentence("quota", format!("at most {} over all pools{shared}", workers(quota))));
    }
    sentences
}

fn ages(counters: Option<&CountersConfig>) -> String {
    match counters {
        None => "of messages are told from looks at the depth, roughly; counters tell them to the second"
            .to_owned(),
        Some(CountersConfig { source, urls, .. }) => {
            let to = match source {
                CounterSource::Prometheus => "to the second",
                CounterSource::Management => "to some seconds",
            };
            format!("of messages are told {to} by what the broker counts, at {}", urls.join(", "))
        }
    }
}

fn place(launcher: &LauncherConfig, instance: &str) -> Vec<Sentence> {
    match launcher {
        LauncherConfig::Process { directory, start_delay } => {
            let delay = match *start_delay {
                Duration::ZERO => String::new(),
                delay => format!("; each waits {} first, as for a new node", words(delay)),
            };
            let place = directory.display();
            let text = format!("are processes of this machine, kept account of in {place}{delay}");
            vec![sentence("workers", text)]
        }
        LauncherConfig::Kubernetes { namespace, autoscaler_status } => {
            let place = namespace.as_ref().map_or_else(
                || "the scaler's own namespace (outside a cluster: the kubeconfig's)".to_owned(),
                |namespace| format!("namespace {namespace}"),
            );
            let kept = format!("what must survive a restart is in ConfigMap {instance}-state");
            let nodes = if *autoscaler_status { "; the cluster autoscaler's status is read" } else { "" };
            vec![
                sentence("workers", format!("are Kubernetes Jobs in {place}{nodes}")),
                sentence("memory", format!("{kept}; it is made by the chart, never by the scaler")),
            ]
        }
    }
}

fn explain_pool(pool: &PoolConfig, config: &Config) -> PoolExplanation {
    let mut sentences = Vec::new();
    if pool.queues.len() > 1 {
        sentences.push(sentence("queues", several_queues(pool)));
    }
    match &pool.slo {
        None => sentences.extend([
            sentence("launch", launch(pool)),
            sentence("small batch", small_batch(pool)),
            sentence("suspects", suspects(pool)),
            sentence("one by one", one_by_one(pool)),
            sentence("pace", pace(pool)),
        ]),
        Some(slo) => {
            sentences.extend(by_deadline(pool, slo, config.counters.as_ref()));
            sentences.push(sentence("suspects", suspects(pool)));
        }
    }
    sentences.push(sentence("limit", limit(pool)));
    sentences.extend(pool.schedule.iter().map(|window| sentence("schedule", at_times(pool, window))));
    if pool.min_workers > 0 {
        sentences.push(sentence("kept warm", kept_warm(pool)));
    }
    if pool.skip_futile {
        let text = "no launch where the workers there are done before a new one would be ready";
        sentences.push(sentence("futile", text.to_owned()));
    }
    if pool.saturation_guard {
        let text = "no launch where the last two workers brought no more throughput, only slower work";
        sentences.push(sentence("saturation", text.to_owned()));
    }
    let unneeded = if pool.slo.is_some() { "the promise held without it" } else { "nothing waited" };
    sentences.push(sentence(
        "taken back",
        format!("a worker that has not started, once {unneeded} for {}", words(pool.withdraw_after)),
    ));
    sentences.push(sentence("cool-down", cooldown(pool)));
    sentences.push(sentence("end", end(pool).to_owned()));
    if config.quota.is_some() && config.pools.len() > 1 {
        let all: u32 = config.pools.iter().map(|pool| pool.weight).sum();
        sentences.push(sentence("weight", format!("{} of {all} where the quota is short", pool.weight)));
    }
    sentences.push(sentence("one worker", one_worker(pool)));
    sentences.extend(worker(&pool.worker));
    PoolExplanation {
        pool: pool.name.clone(),
        queues: pool.queues.clone(),
        sentences,
        warnings: warnings(pool, config),
    }
}

fn one_worker(pool: &PoolConfig) -> String {
    let told = match &pool.worker {
        WorkerTemplate::Process { .. } => "is told to serve",
        WorkerTemplate::CronJob(_) => "is taken to serve",
    };
    let messages = if pool.concurrency == 1 { "message" } else { "messages" };
    format!("{told} {} {messages} at once (worker.concurrency)", pool.concurrency)
}

fn worker(template: &WorkerTemplate) -> Vec<Sentence> {
    match template {
        WorkerTemplate::Process { command, env } => {
            let shown: Vec<_> = command.iter().map(|argument| shown(argument)).collect();
            let mut sentences = vec![sentence("command", shown.join(" "))];
            if !env.is_empty() {
                let names: Vec<_> = env.keys().map(String::as_str).collect();
                sentences.push(sentence("environment", format!("adds {}", names.join(", "))));
            }
            sentences
        }
        WorkerTemplate::CronJob(name) => {
            vec![sentence("template", format!("each is a copy of what CronJob {name} holds (suspended)"))]
        }
    }
}

fn several_queues(pool: &PoolConfig) -> String {
    format!(
        "{}; each worker must take from all {} of them",
        if pool.slo.is_some() {
            "served in this order"
        } else {
            "what waits counts together, the oldest message of all decides the age"
        },
        pool.queues.len()
    )
}

fn by_deadline(pool: &PoolConfig, slo: &SloConfig, counters: Option<&CountersConfig>) -> Vec<Sentence> {
    let learning = match counters {
        Some(CountersConfig { source: CounterSource::Prometheus, .. }) => {
            "how long work takes, from what the broker counts, and starts, from workers; one worker at a time until \
             a message is done"
        }
        _ => "how long work and starts take, from workers; one worker at a time until one has ended",
    };
    let promises: Vec<_> = pool
        .queues
        .iter()
        .zip(&slo.targets)
        .map(|(queue, target)| format!("{} in {queue}", words(*target)))
        .collect();
    let start = match slo.start {
        Start::Immediate => "where nobody lives at once, else at the last moment that does",
        Start::Latest => "always at the last moment that does",
    };
    let nodes = match slo.pods_per_node {
        Some(1) => "1 worker fits on each".to_owned(),
        Some(n) => format!("{n} workers fit on each, and whole ones are filled"),
        None => "how many workers fit on one is learned, 1 until then; whole ones are filled".to_owned(),
    };
    let at_once = slo.max_pending.map(|most| format!("; at most {most} pending at once")).unwrap_or_default();
    vec![
        sentence("promise", format!("no message waits longer than {}", promises.join(", "))),
        sentence("launch", format!("as few as keep it, {start}{at_once}")),
        sentence("learning", learning.to_owned()),
        sentence("nodes", nodes),
    ]
}

fn launch(pool: &PoolConfig) -> String {
    match pool.target_queue_size {
        0 => "as soon as a message waits".to_owned(),
        target => format!("when more messages wait than {target}"),
    }
}

fn small_batch(pool: &PoolConfig) -> String {
    let limit = words(pool.force_empty_queue_interval);
    match pool.target_queue_size {
        0 => "none is held back".to_owned(),
        target => format!(
            "one of up to {target} is held back until its oldest message has waited longer than {limit} \
             (an estimate); while workers live this adds at most one launch in {limit}"
        ),
    }
}

fn suspects(pool: &PoolConfig) -> String {
    let queues: Vec<_> = pool.queues.iter().map(|queue| suspect_queue(queue)).collect();
    format!("messages whose worker died, in {}, count like the others", queues.join(", "))
}

fn one_by_one(pool: &PoolConfig) -> String {
    let at_once = pool.scale_increment;
    let text = match at_once {
        1 => "no launch while a worker is not ready yet".to_owned(),
        n => format!("up to {n} workers are launched at once, none while {n} are not ready yet"),
    };
    match pool.max_pending_while_scaling {
        while_scaling if while_scaling > at_once => {
            format!("{text}; up to {while_scaling} while all wait for a node")
        }
        _ => text,
    }
}

fn pace(pool: &PoolConfig) -> String {
    match pool.launch_interval {
        Duration::ZERO => "launches may follow each other at once".to_owned(),
        interval => format!("at least {} between two launches, restarts or not", words(interval)),
    }
}

fn limit(pool: &PoolConfig) -> String {
    match pool.max_workers {
        None => "none".to_owned(),
        Some(0) => "nothing is ever launched".to_owned(),
        Some(most) => format!("at most {} at any time, those that are ending included", workers(most)),
    }
}

fn at_times(pool: &PoolConfig, window: &Window) -> String {
    let zone = window.time_zone.iana_name().unwrap_or("UTC");
    let least = window.min_workers.unwrap_or(pool.min_workers);
    let most = window.max_workers.unwrap_or(pool.max_workers);
    let most = most.map_or_else(|| "unlimited".to_owned(), workers);
    format!("from {} to {} ({zone}): {} kept warm, at most {most}", window.start, window.end, workers(least))
}

fn kept_warm(pool: &PoolConfig) -> String {
    let idle = words(WARM_IDLE);
    format!("{}, ended only after {idle} without work and then replaced", workers(pool.min_workers))
}

fn cooldown(pool: &PoolConfig) -> String {
    let (base, cap) = (words(pool.cooldown_base), words(pool.cooldown_cap));
    format!(
        "after a worker failed no launch for {base}, doubled by each further failure up to {cap}, and up to \
         20 % more; a message done forgives all, {cap} without a failure forgives one"
    )
}

const fn end(pool: &PoolConfig) -> &'static str {
    if pool.packing {
        "workers end themselves when idle; lower slots are served first, so that surplus ones run dry"
    } else {
        "workers end themselves when idle; the broker deals messages evenly, which keeps surplus ones awake"
    }
}

fn warnings(pool: &PoolConfig, config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |odd: bool, text: &str| {
        if odd {
            warnings.push(text.to_owned());
        }
    };
    let command = match &pool.worker {
        WorkerTemplate::Process { command, .. } => &**command,
        WorkerTemplate::CronJob(_) => &[],
    };
    warn(
        command.iter().any(|word| word == "--concurrency" || word.starts_with("--concurrency=")),
        "the command has a --concurrency of its own: say worker.concurrency instead, by which the scaler plans",
    );
    warn(pool.max_workers == Some(0), "max_workers 0: nothing is ever launched");
    warn(
        pool.max_workers.is_none() && config.quota.is_none(),
        "max_workers unlimited without a quota: nothing bounds the number of workers",
    );
    warn(
        pool.max_workers.is_some_and(|most| most > 0 && most < pool.scale_increment),
        "scale_increment is more than max_workers: so many are never launched at once",
    );
    warn(
        pool.max_pending_while_scaling > 1 && pool.max_pending_while_scaling <= pool.scale_increment,
        "max_pending_while_scaling is not more than scale_increment: it changes nothing",
    );
    warn(
        pool.target_queue_size > 0 && pool.force_empty_queue_interval > LONG_WAIT,
        "force_empty_queue_interval is longer than an hour: a small batch waits that long",
    );
    warn(
        pool.target_queue_size > 0 && pool.force_empty_queue_interval < Duration::from_secs(1),
        "force_empty_queue_interval is below a second: target_queue_size hardly holds anything back",
    );
    warn(
        pool.slo.is_none()
            && pool.launch_interval > Duration::ZERO
            && pool.launch_interval < config.check_interval,
        "launch_interval is shorter than check_interval: launches cannot follow that fast",
    );
    warn(
        pool.slo.as_ref().is_some_and(|slo| slo.targets.iter().any(|target| *target < SHORT_SLO)),
        "an slo below 3m cannot be kept while a node has to come first: keep workers warm (min_workers)",
    );
    warn(
        pool.slo.is_some() && config.counters.is_none(),
        "an slo without counters: how long work takes is told by ended workers alone, and how old messages are by \
         looks at the depth, roughly",
    );
    warn(
        pool.withdraw_after < config.check_interval,
        "withdraw_after is shorter than check_interval: one empty look takes pending workers back",
    );
    warn(
        pool.saturation_guard && config.counters.is_none(),
        "saturation_guard never holds without counters: they tell what the workers get done",
    );
    warn(pool.weight != 1 && config.quota.is_none(), "weight changes nothing without a quota");
    warn(
        command.iter().any(|argument| holds_credentials(argument)),
        "the command holds a url with credentials: every user of the machine can read it",
    );
    warnings
}

/// Whether it looks like `scheme://user:password@host`.
fn holds_credentials(argument: &str) -> bool {
    argument.split_once("://").is_some_and(|(_, rest)| rest.split('/').next().unwrap_or(rest).contains('@'))
}

/// An argument as people can read it.
fn shown(argument: &str) -> String {
    if holds_credentials(argument) {
        return "[url with credentials]".to_owned();
    }
    let plain = !argument.is_empty() && !argument.contains(|c: char| c.is_whitespace() || c.is_control());
    if plain { argument.to_owned() } else { format!("{argument:?}") }
}

const fn sentence(topic: &'static str, text: String) -> Sentence {
    Sentence { topic, text }
}

fn workers(n: u32) -> String {
    if n == 1 { "1 worker".to_owned() } else { format!("{n} workers") }
}

// === impl Explanation ===

impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, general, pools, warnings } = self;
        writeln!(formatter, "instance {instance}")?;
        lines(formatter, general, warnings)?;
        for PoolExplanation { pool, queues, sentences, warnings } in pools {
            let noun = if queues.len() > 1 { "queues" } else { "queue" };
            writeln!(formatter, "\npool {pool}, {noun} {}", queues.join(", "))?;
            lines(formatter, sentences, warnings)?;
        }
        Ok(())
    }
}

fn lines(formatter: &mut fmt::Formatter<'_>, sentences: &[Sentence], warnings: &[String]) -> fmt::Result {
    for Sentence { topic, text } in sentences {
        writeln!(formatter, "  {topic:<12} {text}")?;
    }
    for warning in warnings {
        writeln!(formatter, "  warning: {warning}")?;
    }
    Ok(())
}
