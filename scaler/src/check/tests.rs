use super::*;

fn explained(text: &str) -> String {
    explain(&Config::parse(text, &Overrides::default()).unwrap()).to_string()
}

#[test]
fn the_least_configuration_is_explained() {
    let text = "
instance: mayfly
launcher: { process: { directory: state } }
pools:
  - name: documents
    queues: [{ name: documents }]
    worker: { command: [mayfly-worker, --queue, documents] }
";
    insta::assert_snapshot!(explained(text), @"
    instance mayfly
      looks        at the queues every 250ms
      broker       its url is read from the variable MAYFLY_BROKER_URL
      ages         of messages are told from looks at the depth, roughly; counters tell them to the second
      workers      are processes of this machine, kept account of in state
      unknown      while the broker, the workers or the state cannot be seen, nothing is launched

    pool documents, queue documents
      launch       as soon as a message waits
      small batch  none is held back
      suspects     messages whose worker died, in documents.suspect, count like the others
      one by one   no launch while a worker is not ready yet
      pace         at least 10s between two launches, restarts or not
      limit        at most 10 workers at any time, those that are ending included
      taken back   a worker that has not started, once nothing waited for 10s
      cool-down    after a worker failed no launch for 10s, doubled by each further failure up to 6m, and up to 20 % more; a message done forgives all, 6m without a failure forgives one
      end          workers end themselves when idle; lower slots are served first, so that surplus ones run dry
      one worker   is told to serve 1 message at once (worker.concurrency)
      command      mayfly-worker --queue documents
    ");
}

#[test]
fn workers_on_kubernetes_are_explained() {
    let text = "
instance: mayfly
launcher: { kubernetes: { namespace: work } }
pools:
  - name: documents
    queues: [{ name: documents }]
    worker: { template: mayfly-documents }
";
    let explained = explained(text);
    for sentence in [
        "workers      are Kubernetes Jobs in namespace work",
        "memory       what must survive a restart is in ConfigMap mayfly-state; it is made by the chart, never by the scaler",
        "template     each is a copy of what CronJob mayfly-documents holds (suspended)",
    ] {
        assert!(explained.contains(sentence), "{sentence}: {explained}");
    }
}

#[test]
fn promises_on_waiting_times_are_explained() {
    let text = "
instance: mayfly
launcher: { kubernetes: {} }
pools:
  - name: documents
    queues: [{ name: urgent, slo: 1m }, { name: bulk, slo: 2h }]
    start: latest
    schedule: [{ start: 0 8 * * mon-fri, end: 0 18 * * mon-fri, time_zone: Europe/Berlin, min_workers: 2 }]
    pods_per_node: 4
    worker: { template: mayfly-documents }
";
    let explained = explained(text);
    insta::assert_snapshot!(explained.split_once("\n\n").unwrap().1, @"
    pool documents, queues urgent, bulk
      queues       served in this order; each worker must take from all 2 of them
      promise      no message waits longer than 1m in urgent, 2h in bulk
      launch       as few as keep it, always at the last moment that does
      learning     how long work and starts take, from workers; one worker at a time until one has ended
      nodes        4 workers fit on each, and whole ones are filled
      suspects     messages whose worker died, in urgent.suspect, bulk.suspect, count like the others
      limit        at most 10 workers at any time, those that are ending included
      schedule     from 0 8 * * 1-5 to 0 18 * * 1-5 (Europe/Berlin): 2 workers kept warm, at most 10 workers
      taken back   a worker that has not started, once the promise held without it for 10s
      cool-down    after a worker failed no launch for 10s, doubled by each further failure up to 6m, and up to 20 % more; a message done forgives all, 6m without a failure forgives one
      end          workers end themselves when idle; lower slots are served first, so that surplus ones run dry
      one worker   is taken to serve 1 message at once (worker.concurrency)
      template     each is a copy of what CronJob mayfly-documents holds (suspended)
      warning: an slo below 3m cannot be kept while a node has to come first: keep workers warm (min_workers)
      warning: an slo without counters: how long work takes is told by ended workers alone, and how old messages are by looks at the depth, roughly
    ");
}

#[test]
fn several_queues_of_a_pool_are_explained() {
    let text = "
instance: mayfly
launcher: { kubernetes: {} }
pools:
  - name: documents
    queues: [{ name: urgent }, { name: bulk }]
    worker: { template: mayfly-documents }
";
    let explained = explained(text);
    for sentence in [
        "pool documents, queues urgent, bulk\n",
        "queues       what waits counts together, the oldest message of all decides the age; each worker must take from all 2 of them\n",
    ] {
        assert!(explained.contains(sentence), "{sentence}: {explained}");
    }
}

#[test]
fn everything_configured_is_explained_and_what_is_odd_is_warned_of() {
    let text = "
instance: mayfly
check_interval: 1s
broker: { url_file: /run/secrets/broker-url }
launcher: { process: { directory: state, start_delay: 3s } }
quota: 50
pools:
  - name: documents
    queues: [{ name: documents }]
    target_queue_size: 5
    force_empty_queue_interval: 90s
    launch_interval: 0s
    scale_increment: 2
    max_pending_while_scaling: 4
    skip_futile: true
    min_workers: 1
    max_workers: unlimited
    packing: false
    weight: 3
    worker: { command: [worker, 'two words', 'amqp://me:hunter2@host/'], env: { TOKEN: hunter2, LANG: C } }
  - name: images
    queues: [{ name: images }]
    target_queue_size: 1
    force_empty_queue_interval: 2h
    launch_interval: 500ms
    scale_increment: 3
    max_pending_while_scaling: 2
    max_workers: 2
    withdraw_after: 0s
    worker: { command: [worker] }
";
    let explained = explained(text);
    assert!(!explained.contains("hunter2"), "{explained}");
    insta::assert_snapshot!(explained, @r#"
    instance mayfly
      looks        at the queues every 1s
      broker       its url is read from the file /run/secrets/broker-url
      ages         of messages are told from looks at the depth, roughly; counters tell them to the second
      workers      are processes of this machine, kept account of in state; each waits 3s first, as for a new node
      unknown      while the broker, the workers or the state cannot be seen, nothing is launched
      quota        at most 50 workers over all pools, shared by weight; an idle part is lent until its workers end

    pool documents, queue documents
      launch       when more messages wait than 5
      small batch  one of up to 5 is held back until its oldest message has waited longer than 1m 30s (an estimate); while workers live this adds at most one launch in 1m 30s
      suspects     messages whose worker died, in documents.suspect, count like the others
      one by one   up to 2 workers are launched at once, none while 2 are not ready yet; up to 4 while all wait for a node
      pace         launches may follow each other at once
      limit        none
      kept warm    1 worker, ended only after 10m without work and then replaced
      futile       no launch where the workers there are done before a new one would be ready
      taken back   a worker that has not started, once nothing waited for 10s
      cool-down    after a worker failed no launch for 10s, doubled by each further failure up to 6m, and up to 20 % more; a message done forgives all, 6m without a failure forgives one
      end          workers end themselves when idle; the broker deals messages evenly, which keeps surplus ones awake
      weight       3 of 4 where the quota is short
      one worker   is told to serve 1 message at once (worker.concurrency)
      command      worker "two words" [url with credentials]
      environment  adds LANG, TOKEN
      warning: the command holds a url with credentials: every user of the machine can read it

    pool images, queue images
      launch       when more messages wait than 1
      small batch  one of up to 1 is held back until its oldest message has waited longer than 2h (an estimate); while workers live this adds at most one launch in 2h
      suspects     messages whose worker died, in images.suspect, count like the others
      one by one   up to 3 workers are launched at once, none while 3 are not ready yet
      pace         at least 500ms between two launches, restarts or not
      limit        at most 2 workers at any time, those that are ending included
      taken back   a worker that has not started, once nothing waited for 0s
      cool-down    after a worker failed no launch for 10s, doubled by each further failure up to 6m, and up to 20 % more; a message done forgives all, 6m without a failure forgives one
      end          workers end themselves when idle; lower slots are served first, so that surplus ones run dry
      weight       1 of 4 where the quota is short
      one worker   is told to serve 1 message at once (worker.concurrency)
      command      worker
      warning: scale_increment is more than max_workers: so many are never launched at once
      warning: max_pending_while_scaling is not more than scale_increment: it changes nothing
      warning: force_empty_queue_interval is longer than an hour: a small batch waits that long
      warning: launch_interval is shorter than check_interval: launches cannot follow that fast
      warning: withdraw_after is shorter than check_interval: one empty look takes pending workers back
    "#);
}

#[test]
fn a_pool_that_can_launch_nothing_or_without_bound_is_warned_of() {
    let warnings = |lines: &str| {
        let text = format!(
            "{lines}\ninstance: m\nlauncher: {{ process: {{ directory: d }} }}\npools:\n- {{ name: p, queues: [{{ name: q }}], {} worker: {{ command: [w] }} }}\n",
            if lines.is_empty() { "max_workers: unlimited, weight: 2," } else { "max_workers: 0," }
        );
        let explained = explained(&text);
        explained.lines().filter(|line| line.contains("warning:")).map(str::to_owned).collect::<Vec<_>>()
    };
    insta::assert_debug_snapshot!(warnings(""), @r#"
    [
        "  warning: max_workers unlimited without a quota: nothing bounds the number of workers",
        "  warning: weight changes nothing without a quota",
    ]
    "#);
    insta::assert_debug_snapshot!(warnings("quota: 0"), @r#"
    [
        "  warning: quota 0: nothing is ever launched",
        "  warning: max_workers 0: nothing is ever launched",
    ]
    "#);
}

#[test]
fn findings_are_printed_for_people_and_errors_go_to_standard_error() {
    let findings = Findings { error: Some("broker host is unreachable".to_owned()), ..Findings::default() };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    findings.print(&mut out, &mut err).unwrap();
    assert!(out.is_empty());
    assert_eq!(String::from_utf8(err).unwrap(), "error: broker host is unreachable\n");
}

async fn code_of(args: &[&str]) -> ExitCode {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: CheckArgs,
    }
    let command = <Command as clap::Parser>::try_parse_from([&["check"], args].concat()).unwrap();
    look(command.args).await.1
}

#[tokio::test]
async fn a_bad_file_is_64_a_good_one_0_and_a_broker_that_is_not_there_69() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // A port that was free a moment ago, and that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = write("url", format!("amqp://guest:guest@127.0.0.1:{port}/%2f"));
    let good = write(
        "good.yaml",
        format!(
            "instance: m\nbroker: {{ url_file: {url} }}\nlauncher: {{ process: {{ directory: d }} }}\n\
             pools: [{{ name: p, queues: [{{ name: q }}], worker: {{ command: [w] }} }}]\n"
        ),
    );
    let bad = write("bad.yaml", "instance: M\n".to_owned());
    assert_eq!(code_of(&[&good]).await, ExitCode::Ok);
    assert_eq!(code_of(&[&bad]).await, ExitCode::Usage);
    assert_eq!(code_of(&[&good, "--max-workers=many"]).await, ExitCode::Usage);
    assert_eq!(code_of(&["/nonexistent/file"]).await, ExitCode::Usage);
    assert_eq!(code_of(&[&good, "--connect"]).await, ExitCode::Unavailable);
    std::fs::remove_file(url).unwrap();
    assert_eq!(code_of(&[&good, "--connect"]).await, ExitCode::Usage);
}
