//! From the YAML form to the checked one: defaults, ranges, and what must fit together.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use mayfly_service::{contract, tls::TlsFiles};

use super::{
    BrokerSource, Config, ConfigError, DEFAULT_CHECK_INTERVAL, LauncherConfig, Limits, PoolConfig, ReadyBy,
    WorkerTemplate,
    counters::RawCounters,
    raw::{RawBroker, RawConfig, RawKubernetes, RawLauncher, RawPool, RawProcess, RawQueue, RawWorker},
    values::{ANY_DURATION, Bare, duration, label, limit, name, number, switch},
};

/// Check intervals that serve a purpose and do no harm at the broker.
const CHECK_INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_mins(1);
/// A shorter cool-down is none.
const SHORTEST_COOLDOWN: Duration = Duration::from_millis(100);
/// Most messages that one worker serves at once.
const MOST_CONCURRENCY: u32 = 1000;
/// Most workers of one limit.
pub(super) const MOST_WORKERS: u32 = 100_000;
/// Most workers launched, or pending, at once.
const MOST_AT_ONCE: u32 = 100;
/// Greatest weight.
const MOST_WEIGHT: u32 = 1000;
/// AMQP's short string.
const LONGEST_QUEUE_NAME: usize = 255;
/// Longest Job name: its pods' names get six more characters, and must be DNS labels.
const LONGEST_JOB_NAME: usize = 57;
/// Longest `CronJob` name that Kubernetes takes.
const LONGEST_CRONJOB_NAME: usize = 52;
/// Digits of a serial that must fit into a Job's name.
const SERIAL_DIGITS: usize = 10;
/// What [`job_name`](crate::policy::job_name) adds to instance, pool and serial: a hash of 4, and 3 dashes.
const JOB_NAME_EXTRA: usize = 4 + 3;

/// Set for every worker by the scaler.
const RESERVED: [&str; 9] = [
    contract::CONCURRENCY,
    contract::INSTANCE,
    contract::POOL,
    contract::SERIAL,
    contract::SLOT,
    contract::MAX_IDLE,
    contract::SERVICE_TIME_HINT,
    contract::STATUS_FILE,
    contract::START_DELAY,
];

// === impl RawConfig ===

impl RawConfig {
    pub(super) fn checked(self) -> Result<Config, ConfigError> {
        let Self { instance, check_interval, broker, counters, launcher, quota, pools } = self;
        let instance = label("instance", &required("instance", instance, "a name for this scaler")?)?;
        let check_interval = check_interval.map_or(Ok(DEFAULT_CHECK_INTERVAL), |text| {
            duration("check_interval", &text, Bare::Refused, CHECK_INTERVALS)
        })?;
        let counters = counters.map(RawCounters::checked).transpose()?;
        let (broker, broker_tls) = broker.unwrap_or_default().checked()?;
        let launchers = "expected kubernetes: {} or process: { directory: DIR }";
        let launcher = required("launcher", launcher, launchers).and_then(RawLauncher::checked)?;
        let quota = quota.map(|text| number("quota", &text, 0..=MOST_WORKERS)).transpose()?;
        if pools.is_empty() {
            return Err(missing("pools", "expected at least one pool"));
        }
        let pools = pools
            .into_iter()
            .enumerate()
            .map(|(index, pool)| pool.checked(&format!("pools[{index}]"), &instance, &launcher))
            .collect::<Result<Vec<_>, _>>()?;
        let config =
            Config { instance, check_interval, broker, broker_tls, counters, launcher, quota, pools };
        config.fits_together()?;
        Ok(config)
    }
}

// === impl Config ===

impl Config {
    fn fits_together(&self) -> Result<(), ConfigError> {
        let mut names = BTreeSet::new();
        let mut queues = BTreeMap::new();
        for (index, pool) in self.pools.iter().enumerate() {
            let path = format!("pools[{index}]");
            if !names.insert(&pool.name) {
                return Err(conflict(
                    format!("{path}.name"),
                    format!("{:?} is the name of two pools", pool.name),
                ));
            }
            for (number, queue) in pool.queues.iter().enumerate() {
                if let Some(other) = queues.insert(queue, &pool.name) {
                    let problem = format!("queue {queue:?} is in pool {other:?} already");
                    return Err(conflict(format!("{path}.queues[{number}].name"), problem));
                }
            }
        }
        let least: u64 = self.pools.iter().map(|pool| u64::from(pool.greatest_minimum())).sum();
        if let Some(quota) = self.quota.filter(|quota| u64::from(*quota) < least) {
            let problem =
                format!("{quota} is less than the {least} workers that min_workers keep warm in total");
            return Err(conflict("quota".to_owned(), problem));
        }
        Ok(())
    }
}

// === impl RawBroker ===

impl RawBroker {
    fn checked(self) -> Result<(BrokerSource, TlsFiles), ConfigError> {
        let Self { url_file, url_env, ca_file, cert_file, key_file } = self;
        let file = |key: &str, file: Option<String>| {
            file.map(|file| name(&format!("broker.{key}"), &file, 4096).map(PathBuf::from)).transpose()
        };
        let cert = file("cert_file", cert_file)?;
        let tls = TlsFiles { ca: file("ca_file", ca_file)?, cert, key: file("key_file", key_file)? };
        if tls.cert.is_some() != tls.key.is_some() {
            let problem = "give cert_file and key_file, or neither of them";
            return Err(conflict("broker".to_owned(), problem.to_owned()));
        }
        let source = match (url_file, url_env) {
            (Some(_), Some(_)) => {
                Err(conflict("broker".to_owned(), "give url_file or url_env, not both".to_owned()))
            }
            (Some(file), None) => {
                name("broker.url_file", &file, 4096).map(|file| BrokerSource::UrlFile(file.into()))
            }
            (None, Some(variable)) => {
                // A URL here would be a password in a ConfigMap; the text is not repeated.
                if variable.contains("://") {
                    let problem =
                        "expected the name of an environment variable, not a url: a url holds a password";
                    return Err(conflict("broker.url_env".to_owned(), problem.to_owned()));
                }
                environment_name("broker.url_env", &variable).map(BrokerSource::UrlEnv)
            }
            (None, None) => Ok(BrokerSource::default()),
        };
        Ok((source?, tls))
    }
}

// === impl RawLauncher ===

impl RawLauncher {
    fn checked(self) -> Result<LauncherConfig, ConfigError> {
        let Self { process, kubernetes } = self;
        match (process, kubernetes) {
            (Some(_), Some(_)) => {
                Err(conflict("launcher".to_owned(), "give process or kubernetes, not both".to_owned()))
            }
            (Some(process), None) => process.checked(),
            (None, Some(RawKubernetes { namespace, autoscaler_status })) => {
                let namespace = namespace.map(|text| label("launcher.kubernetes.namespace", &text));
                Ok(LauncherConfig::Kubernetes { namespace: namespace.transpose()?, autoscaler_status })
            }
            (None, None) => {
                Err(missing("launcher", "expected kubernetes: {} or process: { directory: DIR }"))
            }
        }
    }
}

// === impl RawProcess ===

impl RawProcess {
    fn checked(self) -> Result<LauncherConfig, ConfigError> {
        let Self { directory, start_delay } = self;
        let path = "launcher.process.directory";
        let directory = required(path, directory, "a directory for the state and the workers' files")?;
        let directory = PathBuf::from(name(path, &directory, 4096)?);
        let start_delay = start_delay.map_or(Ok(Duration::ZERO), |text| {
            duration("launcher.process.start_delay", &text, Bare::Refused, ANY_DURATION)
        })?;
        Ok(LauncherConfig::Process { directory, start_delay })
    }
}

// === impl RawPool ===

impl RawPool {
    fn checked(
        self,
        path: &str,
        instance: &str,
        launcher: &LauncherConfig,
    ) -> Result<PoolConfig, ConfigError> {
        let at = |key: &str| format!("{path}.{key}");
        let slo = self.slo(path)?;
        let pool = label(&at("name"), &required(&at("name"), self.name, "a name for the pool")?)?;
        let length = instance.len() + pool.len() + JOB_NAME_EXTRA + SERIAL_DIGITS;
        if length > LONGEST_JOB_NAME {
            let most = LONGEST_JOB_NAME - JOB_NAME_EXTRA - SERIAL_DIGITS;
            let problem = format!(
                "instance and pool name have {} characters together, at most {most} fit into a Job's name",
                instance.len() + pool.len()
            );
            return Err(conflict(at("name"), problem));
        }
        let queues = queue_names(path, self.queues)?;
        let schedule = super::schedule::checked(path, self.schedule)?;
        let worker = self.worker.unwrap_or_default();
        let concurrency = worker.concurrency.clone();
        let concurrency =
            concurrency.map(|text| number(&at("worker.concurrency"), &text, 1..=MOST_CONCURRENCY));
        let worker = worker.checked(&at("worker"), launcher)?;
        let launch_interval = match (self.launch_interval, self.check_trigger_interval) {
            (Some(_), Some(_)) => {
                let problem = "is the earlier name of launch_interval: give one of them";
                return Err(conflict(at("check_trigger_interval"), problem.to_owned()));
            }
            (Some(text), None) => Some(duration(&at("launch_interval"), &text, Bare::Refused, ANY_DURATION)?),
            (None, Some(text)) => {
                Some(duration(&at("check_trigger_interval"), &text, Bare::Seconds, ANY_DURATION)?)
            }
            (None, None) => None,
        };
        let cooldowns = SHORTEST_COOLDOWN..=*ANY_DURATION.end();
        let mut checked =
            PoolConfig { queues, schedule, slo, ..PoolConfig::with_defaults(&pool, &pool, worker) };
        set(&mut checked.concurrency, concurrency)?;
        set(&mut checked.launch_interval, launch_interval.map(Ok))?;
        set(
            &mut checked.target_queue_size,
            self.target_queue_size.map(|text| number(&at("target_queue_size"), &text, 0..=u64::MAX)),
        )?;
        set(
            &mut checked.force_empty_queue_interval,
            self.force_empty_queue_interval.map(|text| {
                duration(&at("force_empty_queue_interval"), &text, Bare::Milliseconds, ANY_DURATION)
            }),
        )?;
        set(
            &mut checked.scale_increment,
            self.scale_increment.map(|text| number(&at("scale_increment"), &text, 1..=MOST_AT_ONCE)),
        )?;
        set(
            &mut checked.max_pending_while_scaling,
            self.max_pending_while_scaling
                .map(|text| number(&at("max_pending_while_scaling"), &text, 1..=MOST_AT_ONCE)),
        )?;
        set(
            &mut checked.saturation_guard,
            self.saturation_guard.map(|text| switch(&at("saturation_guard"), &text)),
        )?;
        set(&mut checked.skip_futile, self.skip_futile.map(|text| switch(&at("skip_futile"), &text)))?;
        set(
            &mut checked.min_workers,
            self.min_workers.map(|text| number(&at("min_workers"), &text, 0..=MOST_WORKERS)),
        )?;
        set(
            &mut checked.max_workers,
            self.max_workers.map(|text| limit(&at("max_workers"), &text, MOST_WORKERS)),
        )?;
        set(
            &mut checked.withdraw_after,
            self.withdraw_after
                .map(|text| duration(&at("withdraw_after"), &text, Bare::Refused, ANY_DURATION)),
        )?;
        set(
            &mut checked.cooldown_base,
            self.cooldown_base
                .map(|text| duration(&at("cooldown_base"), &text, Bare::Refused, cooldowns.clone())),
        )?;
        set(
            &mut checked.cooldown_cap,
            self.cooldown_cap
                .map(|text| duration(&at("cooldown_cap"), &text, Bare::Refused, cooldowns.clone())),
        )?;
        checked.deadlines = self.deadlines.checked(&at("deadlines"))?;
        set(&mut checked.packing, self.packing.map(|text| switch(&at("packing"), &text)))?;
        set(&mut checked.ready_by, self.ready_by.map(|text| ready_by(&at("ready_by"), &text)))?;
        set(&mut checked.weight, self.weight.map(|text| number(&at("weight"), &text, 1..=MOST_WEIGHT)))?;
        checked.fits_together(path)?;
        Ok(checked)
    }
}

// === impl PoolConfig ===

impl PoolConfig {
    fn fits_together(&self, path: &str) -> Result<(), ConfigError> {
        let windows = (0..).zip(&self.schedule);
        let paths = windows.map(|(index, window)| (format!("{path}.schedule[{index}]"), self.within(window)));
        for (path, Limits { min_workers, max_workers }) in paths.chain([(path.to_owned(), self.always())]) {
            if let Some(most) = max_workers.filter(|most| min_workers > *most) {
                let problem = format!("{min_workers} is more than max_workers ({most})");
                return Err(conflict(format!("{path}.min_workers"), problem));
            }
        }
        if self.cooldown_base > self.cooldown_cap {
            return Err(conflict(
                format!("{path}.cooldown_base"),
                format!("{:?} is more than cooldown_cap ({:?})", self.cooldown_base, self.cooldown_cap),
            ));
        }
        Ok(())
    }
}

// === impl RawWorker ===

impl RawWorker {
    fn checked(self, path: &str, launcher: &LauncherConfig) -> Result<WorkerTemplate, ConfigError> {
        let Self { concurrency: _, template, command, env } = self;
        let at = |key: &str| format!("{path}.{key}");
        let elsewhere = |key: &str, launcher: &str, instead: &str| {
            conflict(at(key), format!("is for launcher.{launcher}; with this one give {instead}"))
        };
        match launcher {
            LauncherConfig::Kubernetes { .. } if command.is_some() => {
                Err(elsewhere("command", "process", "template: the CronJob holds the command"))
            }
            LauncherConfig::Kubernetes { .. } if env.is_some() => {
                Err(elsewhere("env", "process", "template: the CronJob holds the environment"))
            }
            LauncherConfig::Kubernetes { .. } => {
                let path = at("template");
                let template = required(&path, template, "the name of the pool's suspended CronJob")?;
                cronjob_name(&path, &template).map(WorkerTemplate::CronJob)
            }
            LauncherConfig::Process { .. } if template.is_some() => {
                Err(elsewhere("template", "kubernetes", "command"))
            }
            LauncherConfig::Process { .. } => Self::process(path, command, env),
        }
    }

    fn process(
        path: &str,
        command: Option<Vec<String>>,
        env: Option<BTreeMap<String, String>>,
    ) -> Result<WorkerTemplate, ConfigError> {
        let command_path = format!("{path}.command");
        let command = required(&command_path, command, "expected [PROGRAM, ARGUMENT, …]")?;
        if command.first().is_none_or(String::is_empty) {
            return Err(missing(&command_path, "expected [PROGRAM, ARGUMENT, …], the program not empty"));
        }
        if command.iter().any(|argument| argument.contains('\0')) {
            return Err(conflict(command_path, "an argument cannot hold a NUL character".to_owned()));
        }
        let env = env.unwrap_or_default();
        for (variable, value) in &env {
            let path = format!("{path}.env");
            environment_name(&path, variable)?;
            if RESERVED.contains(&&**variable) {
                return Err(conflict(path, format!("{variable} is set by the scaler for every worker")));
            }
            if value.contains('\0') {
                return Err(conflict(path, format!("the value of {variable} cannot hold a NUL character")));
            }
        }
        Ok(WorkerTemplate::Process { command, env })
    }
}

fn ready_by(path: &str, text: &str) -> Result<ReadyBy, ConfigError> {
    match text.trim() {
        "probe" => Ok(ReadyBy::Probe),
        "consumers" => Ok(ReadyBy::Consumers),
        _ => Err(ConfigError::Value {
            path: path.to_owned(),
            value: text.to_owned(),
            allowed: "expected probe or consumers".to_owned(),
        }),
    }
}

fn cronjob_name(path: &str, text: &str) -> Result<String, ConfigError> {
    let template = label(path, text)?;
    if template.len() <= LONGEST_CRONJOB_NAME {
        return Ok(template);
    }
    let length = template.len();
    let problem =
        format!("the name of a CronJob has at most {LONGEST_CRONJOB_NAME} characters, not {length}");
    Err(conflict(path.to_owned(), problem))
}

/// The names of a pool's queues, the first one served first.
fn queue_names(path: &str, queues: Vec<RawQueue>) -> Result<Vec<String>, ConfigError> {
    let queues_path = format!("{path}.queues");
    if queues.is_empty() {
        return Err(missing(&queues_path, "expected [{ name: QUEUE }]"));
    }
    let checked = |(index, RawQueue { name: queue, .. })| {
        let path = format!("{queues_path}[{index}].name");
        name(&path, &required(&path, queue, "the name of a queue")?, LONGEST_QUEUE_NAME)
    };
    queues.into_iter().enumerate().map(checked).collect()
}

fn environment_name(path: &str, variable: &str) -> Result<String, ConfigError> {
    let is_name = !variable.is_empty() && !variable.contains(['=', '\0']);
    is_name.then(|| variable.to_owned()).ok_or_else(|| ConfigError::Value {
        path: path.to_owned(),
        value: variable.to_owned(),
        allowed: "expected the name of an environment variable".to_owned(),
    })
}

fn set<T>(value: &mut T, by: Option<Result<T, ConfigError>>) -> Result<(), ConfigError> {
    if let Some(by) = by {
        *value = by?;
    }
    Ok(())
}

pub(super) fn required<T>(path: &str, value: Option<T>, allowed: &'static str) -> Result<T, ConfigError> {
    value.ok_or_else(|| missing(path, allowed))
}

pub(super) fn missing(path: &str, allowed: &'static str) -> ConfigError {
    ConfigError::Missing { path: path.to_owned(), allowed }
}

pub(super) const fn conflict(path: String, problem: String) -> ConfigError {
    ConfigError::Conflict { path, problem }
}
