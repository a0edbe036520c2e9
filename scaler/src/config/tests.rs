use std::time::Duration;

use clap::Parser as _;

use super::*;

/// Every key that there is.
const WHOLE: &str = "
instance: mayfly
check_interval: 250ms
broker: { url_file: /run/secrets/broker-url, ca_file: /run/ca.pem, cert_file: /run/tls.crt, key_file: /run/tls.key }
launcher: { process: { directory: /var/lib/mayfly, start_delay: 3s } }
quota: 50
pools:
  - name: documents
    queues: [{ name: documents }]
    target_queue_size: 5
    force_empty_queue_interval: 90s
    launch_interval: 7s
    scale_increment: 2
    max_pending_while_scaling: 4
    skip_futile: true
    min_workers: 1
    max_workers: 12
    withdraw_after: 11s
    cooldown_base: 9s
    cooldown_cap: 5m
    deadlines: { no_room: 1m, image_pull: 30m }
    packing: false
    ready_by: consumers
    weight: 3
    worker: { concurrency: 4, command: [mayfly-worker, --queue, documents], env: { RUST_LOG: info, PORT: 5672 } }
";

/// No more than what must be there.
const LEAST: &str = "
instance: mayfly
launcher: { process: { directory: DIR } }
pools:
  - name: documents
    queues: [{ name: documents }]
    worker: { command: [mayfly-worker] }
";

/// The least configuration with more lines for its pool.
fn with_pool_lines(lines: &str) -> Result<Config, ConfigError> {
    Config::parse(&format!("{LEAST}    {}", lines.replace('\n', "\n    ")), &Overrides::default())
}

fn pool_of(config: Result<Config, ConfigError>) -> PoolConfig {
    config.unwrap().pools.remove(0)
}

fn refusal(text: &str) -> String {
    Config::parse(text, &Overrides::default()).unwrap_err().to_string()
}

fn command(words: &[&str]) -> WorkerTemplate {
    WorkerTemplate::Process {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        env: BTreeMap::new(),
    }
}

#[test]
fn every_key_arrives_where_it_belongs() {
    let config = Config::parse(WHOLE, &Overrides::default()).unwrap();
    let expected = Config {
        instance: "mayfly".to_owned(),
        check_interval: Duration::from_millis(250),
        broker: BrokerSource::UrlFile("/run/secrets/broker-url".into()),
        broker_tls: TlsFiles {
            ca: Some("/run/ca.pem".into()),
            cert: Some("/run/tls.crt".into()),
            key: Some("/run/tls.key".into()),
        },
        counters: None,
        launcher: LauncherConfig::Process {
            directory: "/var/lib/mayfly".into(),
            start_delay: Duration::from_secs(3),
        },
        quota: Some(50),
        pools: vec![PoolConfig {
            name: "documents".to_owned(),
            queues: vec!["documents".to_owned()],
            target_queue_size: 5,
            force_empty_queue_interval: Duration::from_secs(90),
            launch_interval: Duration::from_secs(7),
            scale_increment: 2,
            max_pending_while_scaling: 4,
            saturation_guard: false,
            skip_futile: true,
            min_workers: 1,
            max_workers: Some(12),
            schedule: Vec::new(),
            withdraw_after: Duration::from_secs(11),
            cooldown_base: Duration::from_secs(9),
            cooldown_cap: Duration::from_mins(5),
            deadlines: Deadlines {
                no_room: Duration::from_mins(1),
                image_pull: Duration::from_mins(30),
                ..Deadlines::default()
            },
            weight: 3,
            packing: false,
            slo: None,
            concurrency: 4,
            ready_by: ReadyBy::Consumers,
            worker: WorkerTemplate::Process {
                command: ["mayfly-worker", "--queue", "documents"].map(str::to_owned).to_vec(),
                env: [("RUST_LOG", "info"), ("PORT", "5672")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            },
        }],
    };
    assert_eq!(config, expected);
}

#[test]
fn what_is_silent_has_the_documented_default() {
    let config = Config::parse(LEAST, &Overrides::default()).unwrap();
    assert_eq!(config.check_interval, Duration::from_millis(250));
    assert_eq!(config.broker, BrokerSource::UrlEnv("MAYFLY_BROKER_URL".to_owned()));
    assert_eq!(config.quota, None);
    assert_eq!(
        config.pools,
        [PoolConfig::with_defaults("documents", "documents", command(&["mayfly-worker"]))]
    );
}

#[test]
fn the_earlier_systems_bare_numbers_keep_their_units() {
    let earlier = "force_empty_queue_interval: 60000\ncheck_trigger_interval: 10\n";
    let quoted = "force_empty_queue_interval: \"60000\"\ncheck_trigger_interval: \"10\"\n";
    for lines in [earlier, quoted] {
        let pool = pool_of(with_pool_lines(lines));
        assert_eq!(pool.force_empty_queue_interval, Duration::from_mins(1), "{lines}");
        assert_eq!(pool.launch_interval, Duration::from_secs(10), "{lines}");
    }
    let with_units = pool_of(with_pool_lines("force_empty_queue_interval: 2m\ncheck_trigger_interval: 3s\n"));
    assert_eq!(with_units.force_empty_queue_interval, Duration::from_mins(2));
    assert_eq!(with_units.launch_interval, Duration::from_secs(3));
}

#[test]
fn a_pool_promises_waiting_times_for_all_of_its_queues() {
    let promised = |lines: &str| {
        let queues = "[{ name: urgent, slo: 1m }, { name: bulk, slo: 2h }]";
        let text = LEAST.replace("[{ name: documents }]", &format!("{queues}{lines}"));
        pool_of(Config::parse(&text, &Overrides::default())).slo
    };
    let targets = vec![Duration::from_mins(1), Duration::from_hours(2)];
    let least = SloConfig { targets, pods_per_node: None, max_pending: None, start: Start::Immediate };
    assert_eq!(promised(""), Some(least.clone()));
    let whole = SloConfig { pods_per_node: Some(4), max_pending: Some(6), start: Start::Latest, ..least };
    assert_eq!(promised("\n    pods_per_node: 4\n    max_pending: 6\n    start: latest"), Some(whole));
}

#[test]
fn a_pool_has_several_queues_in_the_order_in_which_they_are_served() {
    let several = WHOLE.replace("{ name: documents }", "{ name: urgent }, { name: bulk }");
    assert_eq!(pool_of(Config::parse(&several, &Overrides::default())).queues, ["urgent", "bulk"]);
}

#[test]
fn unlimited_is_a_word() {
    assert_eq!(pool_of(with_pool_lines("max_workers: unlimited")).max_workers, None);
    assert_eq!(pool_of(with_pool_lines("max_workers: 0")).max_workers, Some(0));
}

/// A mistake and the one sentence that it gets.
#[test]
fn every_mistake_in_a_pool_names_its_place_and_what_is_allowed() {
    let table = [
        (
            "max_workers: many",
            r#"pools[0].max_workers: "many" is not allowed; expected a whole number from 0 to 100000, or the word unlimited"#,
        ),
        (
            "max_workers: -1",
            r#"pools[0].max_workers: "-1" is not allowed; expected a whole number from 0 to 100000, or the word unlimited"#,
        ),
        (
            "min_workers: 1.5",
            r#"pools[0].min_workers: "1.5" is not allowed; expected a whole number from 0 to 100000"#,
        ),
        ("min_workers: 11", "pools[0].min_workers: 11 is more than max_workers (10)"),
        (
            "launch_interval: 10",
            r#"pools[0].launch_interval: "10" is not allowed; a duration needs a unit, such as 10ms, 10s or 10m"#,
        ),
        (
            "launch_interval: soon",
            r#"pools[0].launch_interval: "soon" is not allowed; expected a duration such as 250ms, 10s or 5m"#,
        ),
        ("launch_interval: 10y", r#"pools[0].launch_interval: "10y" is not allowed; from 0s to 1year 18h"#),
        (
            "launch_interval: 10s\ncheck_trigger_interval: 10",
            "pools[0].check_trigger_interval: is the earlier name of launch_interval: give one of them",
        ),
        (
            "scale_increment: 0",
            r#"pools[0].scale_increment: "0" is not allowed; expected a whole number from 1 to 100"#,
        ),
        ("weight: 0", r#"pools[0].weight: "0" is not allowed; expected a whole number from 1 to 1000"#),
        ("packing: perhaps", r#"pools[0].packing: "perhaps" is not allowed; expected true or false"#),
        ("cooldown_base: 7m", "pools[0].cooldown_base: 420s is more than cooldown_cap (360s)"),
        ("cooldown_base: 0s", r#"pools[0].cooldown_base: "0s" is not allowed; from 100ms to 1year 18h"#),
        ("pods_per_node: 4", "pools[0].pods_per_node: is for queues with an slo: give them one"),
        ("max_pending: 4", "pools[0].max_pending: is for queues with an slo: give them one"),
        ("start: latest", "pools[0].start: is for queues with an slo: give them one"),
        ("max_wrokers: 3", r#"line 8: pools[0]: unknown key "max_wrokers"; did you mean "max_workers"?"#),
        ("max_workers: [3]", "line 8: pools[0].max_workers: expected a single value"),
        ("max_workers: 3\nmax_workers: 4", r#"line 9: pools[0]: key "max_workers" is there twice"#),
    ];
    for (lines, expected) in table {
        assert_eq!(with_pool_lines(lines).unwrap_err().to_string(), expected, "{lines}");
    }
}

#[test]
fn every_other_mistake_names_its_place_and_what_is_allowed() {
    let whole = |from: &str, to: &str| {
        assert!(WHOLE.contains(from), "{from}");
        WHOLE.replace(from, to)
    };
    let table = [
        (whole(", key_file: /run/tls.key", ""), "broker: give cert_file and key_file, or neither of them"),
        (whole("instance: mayfly", ""), "instance: is missing; a name for this scaler"),
        (
            whole("instance: mayfly", "instance: Mayfly"),
            r#"instance: "Mayfly" is not allowed; expected at most 63 of a-z, 0-9 and -, with a letter or digit at both ends"#,
        ),
        (
            whole("instance: mayfly", "instance: a-name-that-is-long-by-itself-alone"),
            "pools[0].name: instance and pool name have 44 characters together, at most 40 fit into a Job's name",
        ),
        (whole("250ms", "10ms"), r#"check_interval: "10ms" is not allowed; from 50ms to 1m"#),
        (
            whole("250ms", "250"),
            r#"check_interval: "250" is not allowed; a duration needs a unit, such as 250ms, 250s or 250m"#,
        ),
        (
            whole("url_file: /run/secrets/broker-url", "url_env: amqp://me:secret@host"),
            "broker.url_env: expected the name of an environment variable, not a url: a url holds a password",
        ),
        (
            whole("url_file: /run/secrets/broker-url", "url_env: A, url_file: B"),
            "broker: give url_file or url_env, not both",
        ),
        (
            whole(
                "process: { directory: /var/lib/mayfly, start_delay: 3s }",
                "kubernetes: { namespace: work }",
            ),
            "pools[0].worker.command: is for launcher.process; with this one give template: the CronJob holds the command",
        ),
        (
            whole("directory: /var/lib/mayfly, ", ""),
            "launcher.process.directory: is missing; a directory for the state and the workers' files",
        ),
        (
            whole("quota: 50", "quota: 0"),
            "quota: 0 is less than the 1 workers that min_workers keep warm in total",
        ),
        (
            whole("queues: [{ name: documents }]", "queues: []"),
            "pools[0].queues: is missing; expected [{ name: QUEUE }]",
        ),
        (
            whole("{ name: documents }", "{ name: a }, { name: a }"),
            r#"pools[0].queues[1].name: queue "a" is in pool "documents" already"#,
        ),
        (
            whole("{ name: documents }", "{ name: a }, {}"),
            "pools[0].queues[1].name: is missing; the name of a queue",
        ),
        (
            whole("command: [mayfly-worker, --queue, documents]", "template: documents"),
            "pools[0].worker.template: is for launcher.kubernetes; with this one give command",
        ),
        (
            whole("[mayfly-worker, --queue, documents]", "[]"),
            "pools[0].worker.command: is missing; expected [PROGRAM, ARGUMENT, …], the program not empty",
        ),
        (
            whole("RUST_LOG", "MAYFLY_SLOT"),
            "pools[0].worker.env: MAYFLY_SLOT is set by the scaler for every worker",
        ),
        (String::new(), "instance: is missing; a name for this scaler"),
        (
            "instance: mayfly\nlauncher: { process: { directory: D } }\n".to_owned(),
            "pools: is missing; expected at least one pool",
        ),
        ("instanec: mayfly".to_owned(), r#"line 1: unknown key "instanec"; did you mean "instance"?"#),
        (
            "zebra: 1".to_owned(),
            r#"line 1: unknown key "zebra"; allowed are instance, check_interval, broker, counters, launcher, quota, pools"#,
        ),
        ("instance: [".to_owned(), "line 1: instance: expected a single value"),
        ("instance: \"mayfly".to_owned(), "line 1: unclosed quote"),
        ("- a".to_owned(), "line 1: expected a mapping"),
        ("launcher: 7".to_owned(), "line 1: launcher: expected a mapping"),
        (
            "instance: a\n---\ninstance: b".to_owned(),
            "line 3: only single YAML document expected but multiple found",
        ),
        ("pools: {".to_owned(), "line 1: pools: expected a list"),
    ];
    for (text, expected) in table {
        assert_eq!(refusal(&text), expected, "{text}");
    }
}

#[test]
fn every_mistake_about_an_slo_names_its_place_and_what_is_allowed() {
    let table = [
        (
            WHOLE.replace("{ name: documents }", "{ name: a, slo: 5m }"),
            "pools[0].target_queue_size: is for queues without an slo: with one, deadlines alone decide",
        ),
        (
            LEAST.replace("{ name: documents }", "{ name: a, slo: 5m }, { name: b }"),
            "pools[0].queues[1].slo: is missing: give one to all queues of a pool or to none",
        ),
        (
            LEAST.replace("{ name: documents }", "{ name: a, slo: 300 }"),
            r#"pools[0].queues[0].slo: "300" is not allowed; a duration needs a unit, such as 300ms, 300s or 300m"#,
        ),
        (
            LEAST.replace("{ name: documents }", "{ name: a, slo: 1ms }"),
            r#"pools[0].queues[0].slo: "1ms" is not allowed; from 1s to 1year 18h"#,
        ),
        (
            LEAST.replace("[{ name: documents }]", "[{ name: a, slo: 5m }]\n    start: soon"),
            r#"pools[0].start: "soon" is not allowed; expected immediate or latest"#,
        ),
        (
            LEAST.replace("[{ name: documents }]", "[{ name: a, slo: 5m }]\n    pods_per_node: 0"),
            r#"pools[0].pods_per_node: "0" is not allowed; expected a whole number from 1 to 1000"#,
        ),
    ];
    for (text, expected) in table {
        assert_eq!(refusal(&text), expected, "{text}");
    }
}

#[test]
fn every_mistake_about_counters_names_its_place_and_what_is_allowed() {
    let table = [
        ("counters: {}", "counters: is missing; expected prometheus: ADDRESS or management: ADDRESS"),
        (
            "counters: { prometheus: \"http://a\", management: \"http://b\" }",
            "counters: give prometheus or management, not both",
        ),
        (
            "counters: { prometheus: \"rabbitmq:15692\" }",
            r#"counters.prometheus: "rabbitmq:15692" is not allowed; expected http://HOST:PORT or https://HOST:PORT"#,
        ),
        (
            "counters: { prometheus: \"http://me:hunter2@x\" }",
            "counters.prometheus: an address must not hold a password: give user and password_file",
        ),
        (
            "counters: { management: [\"http://a\", \"http://b\"] }",
            "counters.management: any node speaks for all of them: give one address",
        ),
        (
            "counters: { management: { url: \"http://a\", user: me } }",
            "counters.management: user and password_file go together",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(refusal(&format!("{LEAST}{text}\n")), expected, "{text}");
    }
}

#[test]
fn counters_are_read_at_one_address_or_at_that_of_every_node() {
    let counters = |text: &str| {
        let text = format!("{LEAST}counters: {text}\n");
        Config::parse(&text, &Overrides::default()).unwrap().counters.unwrap()
    };
    let one = CountersConfig {
        source: CounterSource::Prometheus,
        urls: vec!["http://a:15692".to_owned()],
        user: None,
        password_file: None,
        ca_file: None,
    };
    assert_eq!(counters("{ prometheus: \"http://a:15692\" }"), one);
    assert_eq!(counters("{ prometheus: { url: \"http://a:15692\" } }"), one);
    let urls = ["http://a:15692", "http://b:15692"].map(str::to_owned).to_vec();
    let several = CountersConfig { urls, ..one };
    assert_eq!(counters("{ prometheus: [\"http://a:15692\", \"http://b:15692\"] }"), several);
    let told = counters(
        "{ management: { url: \"https://a\", user: me, password_file: /run/password, ca_file: /run/ca.pem } }",
    );
    let expected = CountersConfig {
        source: CounterSource::Management,
        urls: vec!["https://a".to_owned()],
        user: Some("me".to_owned()),
        password_file: Some("/run/password".into()),
        ca_file: Some("/run/ca.pem".into()),
    };
    assert_eq!(told, expected);
}

fn two_pools(second: &str, queue: &str) -> String {
    format!("{LEAST}  - name: {second}\n    queues: [{{ name: {queue} }}]\n    worker: {{ command: [w] }}\n")
}

#[test]
fn a_pool_name_and_a_queue_belong_to_one_pool_only() {
    assert!(Config::parse(&two_pools("images", "images"), &Overrides::default()).is_ok());
    assert_eq!(
        refusal(&two_pools("documents", "images")),
        r#"pools[1].name: "documents" is the name of two pools"#
    );
    assert_eq!(
        refusal(&two_pools("images", "documents")),
        r#"pools[1].queues[0].name: queue "documents" is in pool "documents" already"#
    );
}

#[test]
fn the_longest_names_allowed_make_a_job_name_of_57_characters() {
    let text = LEAST.replace("instance: mayfly", &format!("instance: {}", "i".repeat(31)));
    let config = Config::parse(&text, &Overrides::default()).unwrap();
    let name = crate::policy::job_name(&config.instance, &config.pools[0].name, u64::MAX, 9_999_999_999);
    assert_eq!(name.len(), 57, "{name}");
    let one_more = text.replace(&"i".repeat(31), &"i".repeat(32));
    assert!(Config::parse(&one_more, &Overrides::default()).is_err());
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Path::new("/nonexistent/mayfly.yaml"), &Overrides::default()).unwrap_err();
    assert_eq!(error.to_string(), r#"configuration file "/nonexistent/mayfly.yaml" cannot be read"#);
}

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    broker: BrokerArgs,
}

fn flags(words: &[&str]) -> Flags {
    Flags::try_parse_from([&["scaler"], words].concat()).unwrap()
}

#[test]
fn every_flag_overrides_its_key() {
    let changed = flags(&[
        "--check-interval=100ms",
        "--quota=60",
        "--start-delay=1s",
        "--target-queue-size=6",
        "--force-empty-queue-interval=1000",
        "--launch-interval=8s",
        "--scale-increment=3",
        "--max-pending-while-scaling=5",
        "--min-workers=2",
        "--max-workers=unlimited",
        "--withdraw-after=12s",
        "--cooldown-base=8s",
        "--cooldown-cap=6m",
        "--packing=true",
    ]);
    let config = Config::parse(WHOLE, &changed.overrides).unwrap();
    let mut expected = Config::parse(WHOLE, &Overrides::default()).unwrap();
    expected.check_interval = Duration::from_millis(100);
    expected.quota = Some(60);
    expected.launcher =
        LauncherConfig::Process { directory: "/var/lib/mayfly".into(), start_delay: Duration::from_secs(1) };
    expected.pools[0] = PoolConfig {
        target_queue_size: 6,
        force_empty_queue_interval: Duration::from_secs(1),
        launch_interval: Duration::from_secs(8),
        scale_increment: 3,
        max_pending_while_scaling: 5,
        min_workers: 2,
        max_workers: None,
        withdraw_after: Duration::from_secs(12),
        cooldown_base: Duration::from_secs(8),
        cooldown_cap: Duration::from_mins(6),
        packing: true,
        ..expected.pools[0].clone()
    };
    assert_eq!(config, expected);
}

#[test]
fn a_flag_beats_the_earlier_name_in_the_file() {
    let text = format!("{LEAST}    check_trigger_interval: 10\n");
    let config = Config::parse(&text, &flags(&["--launch-interval=2s"]).overrides);
    assert_eq!(pool_of(config).launch_interval, Duration::from_secs(2));
}

#[test]
fn a_flag_for_one_pool_is_refused_when_the_file_has_several() {
    let several = two_pools("images", "images");
    let error = Config::parse(&several, &flags(&["--max-workers=3"]).overrides).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--max-workers changes the only pool of a file, but this one has 2: set it in the file"
    );
    assert!(Config::parse(&several, &flags(&["--quota=3"]).overrides).is_ok());
}

#[test]
fn the_brokers_url_comes_from_the_file_unless_a_flag_says_otherwise() {
    let file = BrokerSource::UrlFile("FILE".into());
    let variable = BrokerSource::UrlEnv("NAME".to_owned());
    let place = |source: &BrokerSource, words: &[&str]| {
        let BrokerArgs { broker_url_file, broker_url_env, .. } = source.under(&flags(words).broker);
        broker_url_file.map_or(broker_url_env, |file| file.display().to_string())
    };
    assert_eq!(place(&file, &[]), "FILE");
    assert_eq!(place(&variable, &[]), "NAME");
    assert_eq!(place(&file, &["--broker-url-file=OTHER"]), "OTHER");
    assert_eq!(place(&variable, &["--broker-url-file=OTHER"]), "OTHER");
    assert_eq!(place(&variable, &["--broker-url-env=MINE"]), "MINE");
}

#[test]
fn flags_for_tls_stand_above_the_file_one_by_one() {
    let config = Config::parse(WHOLE, &Overrides::default()).unwrap();
    let args = config.broker_args(&flags(&["--broker-ca-file=OTHER"]).broker);
    assert_eq!(args.broker_ca_file, Some("OTHER".into()));
    assert_eq!(args.broker_key_file, Some("/run/tls.key".into()));
}

#[test]
fn the_values_of_a_workers_environment_are_never_printed() {
    let config = Config::parse(&WHOLE.replace("5672", "hunter2"), &Overrides::default()).unwrap();
    let printed = format!("{config:?}");
    assert!(printed.contains("PORT") && !printed.contains("hunter2"), "{printed}");
}

/// No more than what must be there on Kubernetes.
const LEAST_ON_KUBERNETES: &str = "
instance: mayfly
launcher: { kubernetes: {} }
pools:
  - name: documents
    queues: [{ name: documents }]
    worker: { template: mayfly-documents }
";

#[test]
fn on_kubernetes_a_pool_has_a_template() {
    let config = Config::parse(LEAST_ON_KUBERNETES, &Overrides::default()).unwrap();
    assert_eq!(config.launcher, LauncherConfig::Kubernetes { namespace: None, autoscaler_status: false });
    let template = WorkerTemplate::CronJob("mayfly-documents".to_owned());
    assert_eq!(config.pools, [PoolConfig::with_defaults("documents", "documents", template)]);
    let named = LEAST_ON_KUBERNETES.replace("{}", "{ namespace: work }");
    let config = Config::parse(&named, &Overrides::default()).unwrap();
    assert_eq!(
        config.launcher,
        LauncherConfig::Kubernetes { namespace: Some("work".to_owned()), autoscaler_status: false }
    );
}

#[test]
fn what_belongs_to_one_launcher_is_refused_by_name_with_the_other() {
    let least = |from: &str, to: &str| {
        assert!(LEAST_ON_KUBERNETES.contains(from), "{from}");
        LEAST_ON_KUBERNETES.replace(from, to)
    };
    let table = [
        (
            least("kubernetes: {}", "kubernetes: {}, process: { directory: D }"),
            "launcher: give process or kubernetes, not both",
        ),
        (
            least("kubernetes: {}", ""),
            "launcher: is missing; expected kubernetes: {} or process: { directory: DIR }",
        ),
        (
            least("{}", "{ namespace: Work }"),
            r#"launcher.kubernetes.namespace: "Work" is not allowed; expected at most 63 of a-z, 0-9 and -, with a letter or digit at both ends"#,
        ),
        (
            least("{}", "{ directory: D }"),
            r#"line 3: launcher.kubernetes: unknown key "directory"; allowed are namespace, autoscaler_status"#,
        ),
        (
            least("template: mayfly-documents", "command: [w]"),
            "pools[0].worker.command: is for launcher.process; with this one give template: the CronJob holds the command",
        ),
        (
            least("template: mayfly-documents", "template: x, env: { A: b }"),
            "pools[0].worker.env: is for launcher.process; with this one give template: the CronJob holds the environment",
        ),
        (
            least("worker: { template: mayfly-documents }", ""),
            "pools[0].worker.template: is missing; the name of the pool's suspended CronJob",
        ),
        (
            least("template: mayfly-documents", "template: My-Documents"),
            r#"pools[0].worker.template: "My-Documents" is not allowed; expected at most 63 of a-z, 0-9 and -, with a letter or digit at both ends"#,
        ),
        (
            least("mayfly-documents", &"d".repeat(53)),
            "pools[0].worker.template: the name of a CronJob has at most 52 characters, not 53",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(refusal(&text), expected, "{text}");
    }
    assert!(Config::parse(&least("mayfly-documents", &"d".repeat(52)), &Overrides::default()).is_ok());
    let delayed = Overrides { start_delay: Some("3s".to_owned()), ..Overrides::default() };
    assert_eq!(
        Config::parse(LEAST_ON_KUBERNETES, &delayed).unwrap_err().to_string(),
        "--start-delay: only local processes have a start delay (launcher.process)"
    );
}

#[test]
fn what_tells_that_a_worker_is_ready_is_one_of_two_words() {
    assert_eq!(pool_of(with_pool_lines("ready_by: probe")).ready_by, ReadyBy::Probe);
    let refused = with_pool_lines("ready_by: consumer").unwrap_err().to_string();
    assert!(
        refused.contains("pools[0].ready_by") && refused.contains("expected probe or consumers"),
        "{refused}"
    );
}
