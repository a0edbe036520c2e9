//! What exit codes mean, and real processes.

use std::{ffi::OsStr, os::unix::process::ExitStatusExt, time::Duration};

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable},
};
use tempfile::TempDir;

use super::*;

fn status(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

fn judged(cause: Cause, status: ExitStatus) -> Result<Outcome, CannotStart> {
    judge(cause, status, "last words")
}

#[test]
fn exit_codes_mean_what_the_help_says() {
    let retry = |reason: &str| Ok(Outcome::retry(reason));
    assert_eq!(judged(Cause::Itself, status(0)), Ok(Outcome::Done));
    let dead = Ok(Outcome::DeadLetter { reason: "exit code 65: last words".to_owned() });
    assert_eq!(judged(Cause::Itself, status(65)), dead);
    assert_eq!(judged(Cause::Itself, status(75)), retry("exit code 75: last words"));
    assert_eq!(judged(Cause::Itself, status(1)), retry("exit code 1: last words"));
    assert_eq!(judged(Cause::Itself, ExitStatus::from_raw(9)), retry("killed by signal 9: last words"));
    assert!(judged(Cause::Itself, status(126)).is_err());
    assert!(judged(Cause::Itself, status(127)).is_err());
}

#[test]
fn a_command_that_we_ended_is_never_done_whatever_it_exits_with() {
    assert_eq!(judged(Cause::Interrupt, status(0)), Ok(Outcome::Interrupted));
    assert_eq!(judged(Cause::Kill, status(65)), Ok(Outcome::Interrupted));
}

fn message(id: &str, body: &[u8]) -> Message {
    let mut delivery = Delivery::mock(1, "".into(), "q".into(), true, body.to_vec());
    delivery.properties =
        BasicProperties::default().with_message_id(id.into()).with_content_type("text/plain".into());
    Message::from(delivery)
}

fn context(interrupt: &Interrupt) -> Context {
    Context::new(1, None, interrupt.clone())
}

/// Runs `script` with `sh`, its environment being `MAYFLY_BROKER_URL`, `SECRET`, `FILE` and `PATH`.
struct Shell {
    directory: TempDir,
    interrupt: Interrupt,
}

impl Shell {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), interrupt: Interrupt::default() }
    }

    async fn run(&self, script: &str, message: &Message) -> Result<Outcome, CannotStart> {
        let file = self.directory.path().join("file");
        let environment = [
            ("MAYFLY_BROKER_URL", "amqp://user:password@host".into()),
            ("MAYFLY_STATUS_FILE", "/status".into()),
            ("SECRET", "amqp://user:password@host".into()),
            ("FILE", file.into_os_string()),
            ("PATH", std::env::var_os("PATH").unwrap()),
        ];
        let program = Program::new(
            ["sh".into(), "-c".into(), script.into()],
            environment.map(|(name, value)| (name.into(), value)),
            OsStr::new("SECRET"),
        );
        let exec = Exec::new(program, "q");
        // Nothing here may take long; a hang must end as a failure and not as a hanging test.
        tokio::time::timeout(Duration::from_secs(60), exec.handle(message, &context(&self.interrupt)))
            .await
            .unwrap()
    }

    fn file(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("file")).unwrap()
    }

    /// Whether the process that wrote its number to the file is there, be it as a zombie.
    fn is_there(&self) -> bool {
        let pid = self.file();
        assert!(!pid.trim().is_empty());
        std::path::Path::new("/proc").join(pid.trim()).exists()
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_found_out_before_there_is_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let (own, not_executable) = (directory.path().join("own"), directory.path().join("plain"));
    std::os::unix::fs::symlink("/bin/sh", &own).unwrap();
    std::fs::write(&not_executable, "").unwrap();
    let here = directory.path().to_str().unwrap();
    let path = |name: &str| format!("{here}/{name}");
    let prepare = async |command: &str, path: Option<&str>| {
        let environment = path.map(|path| ("PATH".into(), path.into()));
        let exec = Exec::new(Program::new([command.into()], environment, OsStr::new("URL")), "q");
        exec.prepare(&Interrupt::default()).await.map_err(|error| error.to_string())
    };
    let also_here = format!("/nowhere:{here}");
    for (command, path, told) in [
        (path("own"), None, None),
        ("own".to_owned(), Some(&*also_here), None),
        ("sh".to_owned(), None, None),
        (path("absent"), None, Some("/absent: No such file or directory")),
        (path("plain"), None, Some("/plain: Permission denied")),
        (path("own/"), None, Some("own/: Not a directory")),
        (here.to_owned(), None, Some(": permission denied")),
        ("plain".to_owned(), Some(&*also_here), Some("plain: Permission denied")),
        ("absent".to_owned(), Some(&*also_here), Some(": absent: not found in PATH (/nowhere:")),
        // Where we are is not where programs are looked for.
        ("own".to_owned(), Some("/nowhere"), Some("own: not found in PATH (/nowhere)")),
        (String::new(), Some("/"), Some("ermission denied")),
    ] {
        let prepared = prepare(&command, path).await;
        match told {
            None => assert_eq!(prepared, Ok(()), "{command}"),
            Some(told) => assert!(prepared.as_ref().is_err_and(|it| it.contains(told)), "{prepared:?}"),
        }
    }
}

#[tokio::test]
async fn the_body_comes_on_standard_input_byte_for_byte() {
    let shell = Shell::new();
    let body = b"one\0two\xff\n";
    assert_eq!(shell.run("cat > $FILE", &message("id", body)).await, Ok(Outcome::Done));
    assert_eq!(std::fs::read(shell.directory.path().join("file")).unwrap(), body);
}

#[tokio::test]
async fn pipes_never_deadlock() {
    let big = vec![b'x'; 2_000_000];
    let shell = Shell::new();
    for script in ["exit 0", "cat", "cat >&2", "head -c 1000000 /dev/zero; cat > /dev/null"] {
        assert_eq!(shell.run(script, &message("id", &big)).await, Ok(Outcome::Done), "{script}");
    }
}

#[tokio::test]
async fn the_environment_tells_about_the_message_and_hides_connections() {
    let shell = Shell::new();
    assert_eq!(shell.run("env > $FILE", &message("a\0b", b"")).await, Ok(Outcome::Done));
    let text = shell.file();
    for line in [
        "MAYFLY_MESSAGE_ID=ab",
        "MAYFLY_QUEUE=q",
        "MAYFLY_ATTEMPT=1",
        "MAYFLY_REDELIVERED=1",
        "MAYFLY_CONTENT_TYPE=text/plain",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is not in {text}");
    }
    for hidden in ["password", "MAYFLY_STATUS_FILE"] {
        assert!(!text.contains(hidden), "{hidden} is in {text}");
    }
}

#[tokio::test]
async fn headers_come_in_a_file_whatever_they_hold() {
    let shell = Shell::new();
    let long = "x\0\n\u{1F980}".repeat(30_000);
    let mut headers = FieldTable::default();
    headers.insert("long".into(), AMQPValue::LongString(long.as_str().into()));
    let mut delivery = Delivery::mock(1, "".into(), "q".into(), true, Vec::new());
    delivery.properties = BasicProperties::default().with_headers(headers);
    let script = "cat $MAYFLY_HEADERS_FILE > /dev/null; cat $MAYFLY_HEADERS_FILE > $FILE";
    assert_eq!(shell.run(script, &Message::from(delivery)).await, Ok(Outcome::Done));
    let read: serde_json::Value = serde_json::from_str(&shell.file()).unwrap();
    assert_eq!(read, serde_json::json!({ "long": long }));
    assert_eq!(shell.run("cat $MAYFLY_HEADERS_FILE > $FILE", &message("id", b"")).await, Ok(Outcome::Done));
    assert_eq!(shell.file(), "{}");
}

#[tokio::test]
async fn headers_are_those_of_the_message_in_work_whatever_a_command_did_to_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let headers = directory.path().join("headers");
    // F_ADD_SEALS with F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE: nobody can write to it any more.
    let spoil =
        "import fcntl, os; fcntl.fcntl(open(os.environ['MAYFLY_HEADERS_FILE'], 'r+'), 1033, 2 | 4 | 8)";
    let script = r#"cat $MAYFLY_HEADERS_FILE > $HEADERS; [ $MAYFLY_MESSAGE_ID = last ] || python3 -c "$SPOIL" || true"#;
    let environment = [
        ("PATH", std::env::var_os("PATH").unwrap()),
        ("HEADERS", headers.clone().into_os_string()),
        ("SPOIL", spoil.into()),
    ];
    let program = Program::new(
        ["sh".into(), "-c".into(), script.into()],
        environment.map(|(name, value)| (name.into(), value)),
        OsStr::new(""),
    );
    let exec = Exec::new(program, "q");
    for (id, value) in [("first", "a long one"), ("second", "short"), ("last", "")] {
        let mut table = FieldTable::default();
        table.insert("key".into(), AMQPValue::LongString(value.into()));
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, Vec::new());
        delivery.properties = BasicProperties::default().with_message_id(id.into()).with_headers(table);
        let outcome = exec.handle(&Message::from(delivery), &context(&Interrupt::default())).await;
        assert_eq!(outcome, Ok(Outcome::Done), "{id}");
        let read: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&headers).unwrap()).unwrap();
        assert_eq!(read, serde_json::json!({ "key": value }));
    }
    assert_eq!(exec.headers_files.0.lock().unwrap().len(), 1, "one at a time needs one file");
}

#[tokio::test]
async fn what_the_command_leaves_running_is_gone_before_its_message_is_settled() {
    let shell = Shell::new();
    let leaves_one = "sleep 1000 > /dev/null 2>&1 & echo $! > $FILE";
    assert_eq!(shell.run(leaves_one, &message("id", b"")).await, Ok(Outcome::Done));
    assert!(!shell.is_there());
    // One of these is the child of a child that is killed with it, and both hold the pipes open.
    let leaves_two =
        "sh -c 'sleep 1000 & echo $! > $FILE; sleep 1000' & while [ ! -s $FILE ]; do :; done; exit 65";
    std::fs::remove_file(shell.directory.path().join("file")).unwrap();
    let outcome = shell.run(leaves_two, &message("id", b"")).await;
    assert_eq!(outcome, Ok(Outcome::DeadLetter { reason: "exit code 65".to_owned() }));
    assert!(!shell.is_there());
}

#[tokio::test]
async fn an_interrupted_command_may_say_its_last_words_and_a_deaf_one_is_killed() {
    for script in [
        "trap 'exit 0' TERM; sleep 1000 & echo $! > $FILE; wait",
        "trap '' TERM; sleep 1000 & echo $! > $FILE; wait",
    ] {
        let shell = Shell::new();
        let message = message("id", b"");
        let interrupt = async {
            while !shell.directory.path().join("file").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            shell.interrupt.end.cancel();
        };
        let (outcome, ()) = tokio::join!(shell.run(script, &message), interrupt);
        assert_eq!(outcome, Ok(Outcome::Interrupted), "{script}");
        assert!(!shell.is_there());
    }
}

#[tokio::test]
async fn a_command_that_is_not_there_is_not_the_messages_fault() {
    let missing = Exec::new(Program::new(["/no/such/command".into()], [], OsStr::new("")), "q");
    let outcome = missing.handle(&message("id", b""), &context(&Interrupt::default())).await;
    assert!(outcome.unwrap_err().reason.contains("/no/such/command"));
    let outcome = Shell::new().run("/no/such/command", &message("id", b"")).await;
    assert!(outcome.unwrap_err().reason.starts_with("exit code 127"));
}
