//! Real programs: Python, as users have it.

use std::{collections::BTreeSet, ffi::OsStr, path::PathBuf, sync::Arc};

use lapin::{BasicProperties, message::Delivery};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::*;

/// Says that it is ready, then hands each message to `work`, and counts its lives in `lives`.
const FRAME: &str = r#"
import base64, json, os, sys, time
def say(**answer): print(json.dumps(answer), flush=True)
def note(name, text="."): open(os.path.join(os.environ["DIR"], name), "a").write(text + "\n")
def lives(): return len(open(os.path.join(os.environ["DIR"], "lives")).readlines())
note("lives")
"#;
/// Done, with any message.
const ECHO: &str = r#"
say(ready=True)
for line in sys.stdin: say(id=json.loads(line)["id"], outcome="done")
"#;
/// Nothing here may take longer; a hang must end as a failure and not as a hanging test.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    directory: TempDir,
    stdio: Arc<Stdio>,
    interrupt: Interrupt,
}

impl Bench {
    fn new(script: &str) -> Self {
        Self::with_limit(script, LIMIT)
    }

    fn with_limit(script: &str, start_limit: Duration) -> Self {
        let script = format!("{FRAME}{script}");
        Self::of(&["python3", "-c", &script], start_limit)
    }

    fn of(words: &[&str], start_limit: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let environment = [
            ("DIR", directory.path().as_os_str().to_owned()),
            ("PATH", std::env::var_os("PATH").unwrap()),
            ("MAYFLY_BROKER_URL", "amqp://user:password@host".into()),
        ]
        .map(|(name, value)| (name.into(), value));
        let program = Program::new(words.iter().map(Into::into), environment, OsStr::new("SECRET"));
        let stdio = Arc::new(Stdio::new(program, "q", start_limit));
        Self { directory, stdio, interrupt: Interrupt::default() }
    }

    async fn prepare(&self) -> Result<(), CannotStart> {
        tokio::time::timeout(LIMIT, self.stdio.prepare(&Interrupt::default())).await.unwrap()
    }

    async fn handle(&self, body: &str) -> Result<Outcome, CannotStart> {
        let context = context(&self.interrupt);
        tokio::time::timeout(LIMIT, self.stdio.handle(&message(body.as_bytes()), &context)).await.unwrap()
    }

    /// Hands it all at once, and returns the outcomes in the same order.
    async fn handle_all(&self, bodies: &[&str]) -> Vec<Result<Outcome, CannotStart>> {
        let mut tasks = JoinSet::new();
        for (index, body) in bodies.iter().enumerate() {
            let (stdio, context) = (Arc::clone(&self.stdio), context(&self.interrupt));
            let message = message(body.as_bytes());
            tasks.spawn(async move { (index, stdio.handle(&message, &context).await) });
        }
        let mut outcomes = tokio::time::timeout(LIMIT, tasks.join_all()).await.unwrap();
        outcomes.sort_by_key(|(index, _)| *index);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    async fn finish(&self) {
        tokio::time::timeout(LIMIT, self.stdio.finish(&self.interrupt)).await.unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn notes(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn noted(&self, name: &str, count: usize) {
        let noted = async {
            while self.notes(name).len() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, noted).await.unwrap();
    }
}

fn context(interrupt: &Interrupt) -> Context {
    Context::new(1, None, interrupt.clone())
}

fn message(body: &[u8]) -> Message {
    let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, body.to_vec());
    delivery.properties = BasicProperties::default().with_message_id("m".into());
    Message::from(delivery)
}

fn is_there(pid: &str) -> bool {
    std::path::Path::new("/proc").join(pid).exists()
}

fn crashed(outcome: &Result<Outcome, CannotStart>) -> &str {
    match outcome {
        Ok(Outcome::Crashed { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn answers_may_come_in_any_order_and_mean_what_they_say() {
    let bench = Bench::new(
        r#"
say(ready=True)
got = [json.loads(sys.stdin.readline()) for _ in range(3)]
for it in reversed(got): say(id=it["id"], **json.loads(it["body"]))
sys.stdin.read()
"#,
    );
    bench.prepare().await.unwrap();
    let outcomes = bench
        .handle_all(&[
            r#"{"outcome": "done"}"#,
            r#"{"outcome": "retry", "reason": "busy", "after": "30s"}"#,
            r#"{"outcome": "dead_letter", "reason": "broken"}"#,
        ])
        .await;
    let expected = [
        Ok(Outcome::Done),
        Ok(Outcome::Retry { reason: "busy".to_owned(), after: Some(Duration::from_secs(30)) }),
        Ok(Outcome::DeadLetter { reason: "broken".to_owned() }),
    ];
    assert_eq!(outcomes, expected);
    bench.finish().await;
    assert_eq!(bench.notes("lives").len(), 1);
}

#[tokio::test]
async fn many_messages_and_large_ones_pass_byte_for_byte_both_ways_at_once() {
    let bench = Bench::new(
        r#"
say(ready=True)
for line in sys.stdin:
    it = json.loads(line)
    body = base64.b64decode(it["body_base64"]) if "body_base64" in it else it["body"].encode()
    print("x" * len(body), file=sys.stderr)
    say(id=it["id"], outcome="retry", reason="%d %d" % (len(body), sum(body)))
"#,
    );
    bench.prepare().await.unwrap();
    let bodies: [Vec<u8>; 5] = [
        vec![],
        vec![0xff; 1_000_003],
        "\u{1F980}\0\n\r\"\\\u{2028}".as_bytes().to_vec(),
        vec![b'\n'; 2_000_000],
        (0..=255).cycle().take(70_000).collect(),
    ];
    let mut tasks = JoinSet::new();
    for index in 0..40 {
        let body = bodies[index % bodies.len()].clone();
        let (stdio, context) = (Arc::clone(&bench.stdio), context(&bench.interrupt));
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        let expected = format!("{} {sum}", body.len());
        tasks.spawn(async move { (stdio.handle(&message(&body), &context).await, expected) });
    }
    for (outcome, expected) in tokio::time::timeout(LIMIT, tasks.join_all()).await.unwrap() {
        assert_eq!(outcome, Ok(Outcome::retry(expected)));
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_crash_takes_what_was_in_work_and_answers_given_before_count() {
    let bench = Bench::new(
        r#"
say(ready=True)
for line in sys.stdin:
    it = json.loads(line)
    if it["body"] == "die":
        sys.stderr.write("boom\n")
        os._exit(3)
    say(id=it["id"], outcome="done")
    if it["body"] == "last": os.kill(os.getpid(), 9)
"#,
    );
    bench.prepare().await.unwrap();
    let outcomes = bench.handle_all(&["one", "die", "two"]).await;
    assert_eq!(outcomes[0], Ok(Outcome::Done));
    let why = "the program ended while this message was in work: exit code 3: boom";
    assert_eq!(crashed(&outcomes[1]), why);
    assert_eq!(crashed(&outcomes[2]), why);
    // It is there again, and an answer just before an end is no crash.
    assert_eq!(bench.handle("last").await, Ok(Outcome::Done));
    assert_eq!(bench.handle("three").await, Ok(Outcome::Done));
    bench.finish().await;
    assert_eq!(bench.notes("lives").len(), 3);
}

#[tokio::test]
async fn a_program_that_crashes_before_it_is_ready_is_tried_again() {
    let bench = Bench::new(&format!("if lives() < 3: sys.exit(1)\n{ECHO}"));
    bench.prepare().await.unwrap();
    assert_eq!(bench.handle("one").await, Ok(Outcome::Done));
    bench.finish().await;
    assert_eq!(bench.notes("lives").len(), 3);
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_nobodys_fault_but_its_own() {
    let missing = Bench::of(&["/no/such/program"], LIMIT);
    assert!(missing.prepare().await.unwrap_err().reason.contains("/no/such/program"));
    assert!(missing.handle("one").await.is_err());
    missing.finish().await;

    let wrapped = Bench::of(&["sh", "-c", "exec /no/such/program"], LIMIT);
    assert!(wrapped.prepare().await.unwrap_err().reason.contains("exit code 127"));
    wrapped.finish().await;

    let limit = Duration::from_millis(1500);
    // A shell, since it starts at once even where much else runs.
    let silent = Bench::of(&["sh", "-c", "echo $$ >>$DIR/pid; exec sleep 1000"], limit);
    let reason = silent.prepare().await.unwrap_err().reason;
    assert!(reason.contains("1s 500ms"), "{reason}");
    assert!(!is_there(&silent.notes("pid")[0]));
    silent.finish().await;

    let broken = Bench::of(&["sh", "-c", "echo no model >&2; exit 1"], limit);
    let reason = broken.prepare().await.unwrap_err().reason;
    assert!(reason.contains("no model"), "{reason}");
    broken.finish().await;
}

#[tokio::test]
async fn what_can_no_more_be_started_later_gives_messages_back() {
    let bench = Bench::with_limit(
        r"
if lives() > 1: sys.exit(126)
say(ready=True)
sys.stdin.readline()
sys.exit(1)
",
        LIMIT,
    );
    bench.prepare().await.unwrap();
    let one = bench.handle("one").await;
    assert!(crashed(&one).contains("exit code 1"));
    assert!(bench.handle("two").await.unwrap_err().reason.contains("exit code 126"));
    assert!(bench.handle("three").await.is_err());
    bench.finish().await;
}

#[tokio::test]
async fn a_message_that_a_dying_program_did_not_read_goes_to_the_next() {
    let bench = Bench::new(&format!(
        r#"
if lives() == 1:
    say(ready=True)
    while not os.path.exists(os.path.join(os.environ["DIR"], "go")): time.sleep(0.005)
    sys.exit(1)
{ECHO}"#
    ));
    bench.prepare().await.unwrap();
    let go = async {
        std::fs::write(bench.path("go"), "").unwrap();
    };
    let (outcome, ()) = tokio::join!(bench.handle("one"), go);
    assert_eq!(outcome, Ok(Outcome::Done));
    bench.finish().await;
    assert_eq!(bench.notes("lives").len(), 2);
}

#[tokio::test]
async fn a_program_that_never_reads_is_given_up() {
    let limit = Duration::from_millis(1500);
    let bench = Bench::of(&["sh", "-c", "echo '{\"ready\":true}'; sleep 0.2"], limit);
    bench.prepare().await.unwrap();
    let reason = bench.handle("one").await.unwrap_err().reason;
    assert!(reason.contains("before it reads"), "{reason}");
    bench.finish().await;
}

#[tokio::test]
async fn what_is_no_answer_disturbs_nobody() {
    let bench = Bench::new(
        r#"
print("loading"); say(id=1, outcome="done"); say(ready=True)
for line in sys.stdin:
    it = json.loads(line)
    print("debug", line[:1000])
    print("x" * 200_000)
    say(id=it["id"] + 1000, outcome="done"); say(id="a"); print("[1"); print(); sys.stdout.buffer.write(b"\xff\n")
    say(id=it["id"], outcome="well")
    say(id=it["id"], outcome="done")
"#,
    );
    bench.prepare().await.unwrap();
    for _ in 0..2 {
        let outcome = bench.handle("one").await.unwrap();
        let Outcome::Retry { reason, .. } = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("\"well\""), "{reason}");
    }
    bench.finish().await;
    assert_eq!(bench.notes("lives").len(), 1);
}

#[tokio::test]
async fn a_message_that_does_not_end_in_its_time_takes_the_program_with_it() {
    let bench = Bench::new(
        r#"
import subprocess
say(ready=True)
for line in sys.stdin:
    it = json.loads(line)
    if it["body"] == "hang":
        note("pids", str(os.getpid())); note("pids", str(subprocess.Popen(["sleep", "1000"]).pid))
    elif it["body"] == "well": say(id=it["id"], outcome="done")
"#,
    );
    bench.prepare().await.unwrap();
    let own = Interrupt::default();
    let (stdio, other) = (Arc::clone(&bench.stdio), context(&bench.interrupt));
    let other = tokio::spawn(async move { stdio.handle(&message(b"other"), &other).await });
    let (hang, late) = (message(b"hang"), context(&own));
    let late = bench.stdio.handle(&hang, &late);
    let end = async {
        bench.noted("pids", 2).await;
        own.end.cancel();
    };
    let (late, ()) = tokio::time::timeout(LIMIT, async { tokio::join!(late, end) }).await.unwrap();
    assert_eq!(late, Ok(Outcome::Interrupted));
    assert!(crashed(&other.await.unwrap()).contains("another message"));
    for pid in bench.notes("pids") {
        assert!(!is_there(&pid));
    }
    assert_eq!(bench.handle("well").await, Ok(Outcome::Done));
    bench.finish().await;
}

#[tokio::test]
async fn what_is_answered_in_its_last_words_counts() {
    let bench = Bench::new(
        r#"
say(ready=True)
it = json.loads(sys.stdin.readline())
note("begun")
while not os.path.exists(os.path.join(os.environ["DIR"], "go")): time.sleep(0.005)
say(id=it["id"], outcome="done")
sys.stdin.read()
"#,
    );
    bench.prepare().await.unwrap();
    let end = async {
        bench.noted("begun", 1).await;
        bench.interrupt.end.cancel();
        std::fs::write(bench.path("go"), "").unwrap();
    };
    let (outcome, ()) = tokio::join!(bench.handle("one"), end);
    assert_eq!(outcome, Ok(Outcome::Done));
    bench.finish().await;
}

#[tokio::test]
async fn when_all_are_asked_to_end_none_has_crashed() {
    let bench = Bench::new(
        r#"
say(ready=True)
for line in sys.stdin: note("begun")
"#,
    );
    bench.prepare().await.unwrap();
    for kill in [false, true] {
        let interrupt = Interrupt::default();
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let (stdio, context) = (Arc::clone(&bench.stdio), context(&interrupt));
            tasks.spawn(async move { stdio.handle(&message(b"x"), &context).await });
        }
        bench.noted("begun", if kill { 8 } else { 4 }).await;
        if kill {
            interrupt.kill.cancel();
        } else {
            interrupt.end.cancel();
        }
        let outcomes = tokio::time::timeout(LIMIT, tasks.join_all()).await.unwrap();
        assert_eq!(outcomes, vec![Ok(Outcome::Interrupted); 4]);
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_message_that_waits_for_the_program_is_let_go_at_once() {
    let bench = Bench::new(
        r"
if lives() > 1: time.sleep(1000)
say(ready=True)
sys.stdin.readline()
",
    );
    bench.prepare().await.unwrap();
    crashed(&bench.handle("one").await);
    let kill = async {
        bench.noted("lives", 2).await;
        bench.interrupt.kill.cancel();
    };
    let (outcome, ()) = tokio::join!(bench.handle("two"), kill);
    assert_eq!(outcome, Ok(Outcome::Interrupted));
    bench.finish().await;
}

#[tokio::test]
async fn at_the_end_the_program_may_end_by_itself_and_is_ended_if_it_does_not() {
    let polite = Bench::new(&format!("{ECHO}\nnote('bye')"));
    polite.prepare().await.unwrap();
    polite.finish().await;
    assert_eq!(polite.notes("bye").len(), 1);

    let deaf = Bench::new(
        r#"
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
note("pid", str(os.getpid()))
say(ready=True)
time.sleep(1000)
"#,
    );
    deaf.prepare().await.unwrap();
    deaf.finish().await;
    assert!(!is_there(&deaf.notes("pid")[0]));
}

#[tokio::test]
async fn at_the_end_nobody_waits_for_a_program_that_is_to_be_killed() {
    let bench = Bench::new(
        r#"
import signal
signal.signal(signal.SIGTERM, lambda *_: note("asked"))
note("pid", str(os.getpid()))
say(ready=True)
while True: signal.pause()
"#,
    );
    bench.prepare().await.unwrap();
    bench.interrupt.kill.cancel();
    bench.finish().await;
    let gone = async {
        // What was killed and not waited for has no words any more.
        while std::fs::read(format!("/proc/{}/cmdline", bench.notes("pid")[0])).is_ok_and(|it| !it.is_empty())
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.unwrap();
    assert_eq!(bench.notes("asked"), [""; 0]);
}

#[tokio::test]
async fn the_program_sees_nothing_of_ours() {
    let bench = Bench::new(
        r#"
note("environment", "\n".join(os.environ)); note("files", "\n".join(os.listdir("/proc/self/fd")))
say(ready=True)
sys.stdin.read()
"#,
    );
    bench.prepare().await.unwrap();
    bench.finish().await;
    let environment = bench.notes("environment");
    assert!(!environment.iter().any(|name| name.starts_with("MAYFLY_")), "{environment:?}");
    // Nothing but what every child of this process inherits.
    let files: BTreeSet<String> = bench.notes("files").into_iter().collect();
    let list = "import os; print('\\n'.join(os.listdir('/proc/self/fd')))";
    let listed = std::process::Command::new("python3").args(["-c", list]).output().unwrap().stdout;
    let inherited = String::from_utf8(listed).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(files, inherited);
}
