//! The handler with real processes; messages come from `Outgoing`'s counterpart, built by hand.

use super::*;

fn status(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

fn judged(cause: Cause, status: ExitStatus) -> Result<Outcome, CannotStart> {
    judge(cause, status, Some(Duration::from_secs(5)), "last words")
}

#[test]
fn exit_codes_mean_what_the_help_says() {
    let retry = |reason: &str| Ok(Outcome::Retry { reason: reason.to_owned() });
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
    let late = Ok(Outcome::Retry { reason: "took longer than 5s: last words".to_owned() });
    assert_eq!(judged(Cause::Timeout, status(0)), late);
}
