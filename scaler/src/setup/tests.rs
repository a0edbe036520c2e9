use super::*;

const CONFIG: &str = "
instance: mayfly
broker: { url_env: URL }
launcher: { process: { directory: state, start_delay: 1s } }
quota: 9
pools:
  - name: a
    queues: [{ name: a }]
    worker: { command: [worker] }
  - name: b
    queues: [{ name: b }]
    worker: { command: [worker] }
";

fn parsed(text: &str) -> Config {
    Config::parse(text, &Overrides::default()).unwrap()
}

fn changed(from: &str, to: &str) -> Config {
    assert!(CONFIG.contains(from), "{from}");
    parsed(&CONFIG.replace(from, to))
}

#[test]
fn what_a_process_rests_on_cannot_change_while_it_runs() {
    let table = [
        ("instance: mayfly", "instance: other", "instance"),
        ("url_env: URL", "url_env: OTHER", "broker"),
        ("url_env: URL", "url_env: URL, ca_file: ca.crt", "broker"),
        ("directory: state", "directory: elsewhere", "launcher"),
        ("start_delay: 1s", "start_delay: 2s", "launcher"),
    ];
    for (from, to, key) in table {
        let error = fits(&parsed(CONFIG), changed(from, to)).unwrap_err().to_string();
        assert_eq!(error, format!("{key} cannot change while the scaler runs: restart it to change that"));
    }
    let both = parsed(&CONFIG.replace("mayfly", "other").replace("URL", "OTHER"));
    let error = fits(&parsed(CONFIG), both).unwrap_err().to_string();
    assert!(error.starts_with("instance, broker cannot change"), "{error}");
}

#[test]
fn pools_limits_and_looks_may_change_and_are_told() {
    let table = [
        ("quota: 9", "quota: 8", "quota"),
        ("quota: 9", "check_interval: 1s", "quota, check_interval"),
        ("quota: 9", "quota: 9\ncounters: { prometheus: 'http://localhost:15692' }", "counters"),
        (
            "name: b\n    queues: [{ name: b }]",
            "name: c\n    queues: [{ name: b }]",
            "pool c is new, pool b is gone",
        ),
        ("queues: [{ name: a }]", "queues: [{ name: a }, { name: aa }]", "pool a is changed"),
        ("queues: [{ name: a }]", "max_workers: 3\n    queues: [{ name: a }]", "pool a is changed"),
        ("command: [worker]", "command: [better]", "pool a is changed, pool b is changed"),
    ];
    for (from, to, told) in table {
        let old = parsed(CONFIG);
        let new = fits(&old, changed(from, to)).unwrap();
        assert_eq!(changes(&old, &new), told, "{to}");
    }
}

/// A file, and a watch over it that never reaches its broker.
struct Place {
    directory: tempfile::TempDir,
    watch: SetupWatch,
    setup: watch::Receiver<Setup>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mayfly.yaml");
        std::fs::write(&path, CONFIG).unwrap();
        let source = Source { path, overrides: Overrides::default() };
        let url = "amqp://127.0.0.1:1/%2f".parse().unwrap();
        let read = (CONFIG.to_owned(), parsed(CONFIG));
        let (watch, setup) =
            SetupWatch::new(source, read, url, Clock::start(), CancellationToken::new()).unwrap();
        Self { directory, watch, setup }
    }

    async fn write(&mut self, text: &str) {
        std::fs::write(&self.watch.source.path, text).unwrap();
        self.watch.look().await;
        self.watch.look().await;
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.setup.borrow().config)
    }

    fn refused(&self) -> Option<String> {
        self.setup.borrow().refused.clone().map(|refused| refused.error)
    }
}

#[tokio::test]
async fn a_bad_file_is_refused_and_the_one_before_stays_until_a_good_one_comes() {
    let mut place = Place::new();
    let before = place.config();
    place.write(&CONFIG.replace("quota: 9", "quota: many")).await;
    assert_eq!(place.config(), before);
    let refused = place.refused().unwrap();
    assert!(refused.starts_with("quota"), "{refused}");
    assert_eq!(place.watch.metrics.refused.get(), 1);
    place.write(&CONFIG.replace("quota: 9", "quota: 7")).await;
    assert_eq!((place.config().quota, place.refused()), (Some(7), None));
    assert_eq!((place.watch.metrics.refused.get(), place.watch.metrics.changes.get()), (0, 1));
}

#[tokio::test]
async fn going_back_to_what_is_in_force_takes_a_refusal_back() {
    let mut place = Place::new();
    place.write("nonsense").await;
    assert!(place.refused().is_some());
    place.write(CONFIG).await;
    assert_eq!(place.refused(), None);
    assert_eq!(place.watch.metrics.changes.get(), 0);
}

#[tokio::test]
async fn a_file_is_not_judged_while_it_is_being_written() {
    let mut place = Place::new();
    let path = place.watch.source.path.clone();
    // Half of it is a sound configuration without the second pool.
    let half = CONFIG.find("  - name: b").unwrap();
    std::fs::write(&path, &CONFIG[..half]).unwrap();
    place.watch.look().await;
    std::fs::write(&path, CONFIG).unwrap();
    place.watch.look().await;
    place.watch.look().await;
    assert_eq!(place.config().pools.len(), 2);
    assert_eq!(place.watch.metrics.changes.get(), 0);
}

#[tokio::test]
async fn a_file_behind_links_that_are_swapped_is_followed() {
    let mut place = Place::new();
    let directory = place.directory.path().to_owned();
    // As the kubelet mounts a ConfigMap.
    for (version, quota) in [("1", "quota: 9"), ("2", "quota: 5")] {
        std::fs::create_dir(directory.join(version)).unwrap();
        let text = CONFIG.replace("quota: 9", quota);
        std::fs::write(directory.join(version).join("mayfly.yaml"), text).unwrap();
    }
    std::os::unix::fs::symlink("1", directory.join("..data")).unwrap();
    std::fs::remove_file(&place.watch.source.path).unwrap();
    std::os::unix::fs::symlink("..data/mayfly.yaml", &place.watch.source.path).unwrap();
    place.watch.look().await;
    std::os::unix::fs::symlink("2", directory.join("..data_tmp")).unwrap();
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    place.watch.look().await;
    place.watch.look().await;
    assert_eq!(place.config().quota, Some(5));
}

#[tokio::test]
async fn counters_that_cannot_be_read_are_refused() {
    let mut place = Place::new();
    let counters = "counters: { management: { url: 'http://localhost:15672', user: u, password_file: /does/not/exist } }";
    place.write(&format!("{CONFIG}{counters}\n")).await;
    let refused = place.refused().unwrap();
    assert!(refused.starts_with("counters cannot be read: password file \"/does/not/exist\""), "{refused}");
    assert!(place.config().counters.is_none());
}

#[tokio::test]
async fn a_file_that_is_gone_is_refused() {
    let mut place = Place::new();
    std::fs::remove_file(&place.watch.source.path).unwrap();
    place.watch.look().await;
    place.watch.look().await;
    assert!(place.refused().unwrap().contains("mayfly.yaml"), "{:?}", place.refused());
    assert_eq!(place.config().pools.len(), 2);
}
