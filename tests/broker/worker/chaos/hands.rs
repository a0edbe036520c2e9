//! Workers that are replaced as soon as they are gone.

use std::{collections::BTreeMap, mem, os::unix::process::ExitStatusExt, process::ExitStatus};

use anyhow::{Result, bail, ensure};
use mayfly_service::report::ExitReason;
use mayfly_tests::{Proxy, Signal};

use super::{
    super::{Crew, Dice, NOTE_DONE, Worker, exit},
    QUEUES,
};

/// All workers of the test.
pub(super) struct Hands<'a> {
    pub(super) crew: Crew<'a>,
    /// The way to the broker, half of the workers by each.
    pub(super) proxies: [Proxy; 2],
    dice: Dice,
    all: Vec<Hand>,
    started: usize,
    /// How those ended that are gone.
    ends: BTreeMap<&'static str, usize>,
    /// What they lost before.
    losses: BTreeMap<&'static str, usize>,
}

/// One of them.
struct Hand {
    name: String,
    queue: &'static str,
    worker: Worker,
    /// It dies by itself at some step.
    is_doomed: bool,
    /// It was asked to stop.
    is_leaving: bool,
}

/// At work on each queue.
const WORKERS: usize = 2;
/// One worker of so many is doomed.
const DOOMED: usize = 6;
/// Where the doomed ones die.
const STEPS: [&str; 5] =
    ["after-ready", "after-handler", "after-retry-publish", "before-ack", "before-close"];
/// How long work may go on after SIGTERM: shorter and longer than it takes.
const GRACES: [&str; 3] = ["1ms", "30ms", "10s"];
/// What a message's id says: poison kills its worker, or the program that works for it; `once` fails at its first
/// attempt; all take up to 70 ms. A worker that is gone is not killed: its number could be anybody's by now.
const HANDLER: &str = r#"
    number=${MAYFLY_MESSAGE_ID#*-}
    case $MAYFLY_MESSAGE_ID in
        poison-*)
            [ -n "$CHILD" ] && [ $((number % 2)) = 0 ] && kill -9 "$CHILD" && exit 1
            read -r parent </proc/$PPID/comm
            [ "$parent" = mayfly-worker ] && kill -9 $PPID
            exit 1 ;;
        once-*) [ "$MAYFLY_ATTEMPT" = 1 ] && exit 75 ;;
    esac
    sleep 0.0$((number % 8))"#;
/// Does the same to lines of JSON, several at once. What was killed doesn't answer.
const LINES: &str = r#"
    field() { value=${line#*\"$1\":}; value=${value%%[,\}]*}; value=${value#\"}; value=${value%\"}; }
    echo '{"ready":true}'
    while read -r line; do
        {
            field message_id; MAYFLY_MESSAGE_ID=$value
            field attempt; MAYFLY_ATTEMPT=$value
            field redelivered; case $value in true) MAYFLY_REDELIVERED=1 ;; *) MAYFLY_REDELIVERED=0 ;; esac
            field id
            (HANDLER)
            case $? in 0) outcome=done ;; 75) outcome=retry ;; *) exit ;; esac
            echo "{\"id\":$value,\"outcome\":\"$outcome\"}"
        } &
    done"#;
/// The ends of a connection that workers tell apart, by words in their logs.
const LOSSES: [(&str, &str); 3] = [
    ("connection lost", ""),
    ("closed by the broker", "CONNECTION_FORCED"),
    ("channel closed by the broker", "delivery acknowledgement"),
];

// === impl Hands ===

impl<'a> Hands<'a> {
    pub(super) async fn new(crew: Crew<'a>, dice: Dice) -> Result<Self> {
        let proxies = [Proxy::before(&crew.broker).await?, Proxy::before(&crew.broker).await?];
        Ok(Self {
            crew,
            proxies,
            dice,
            all: Vec::new(),
            started: 0,
            ends: BTreeMap::new(),
            losses: BTreeMap::new(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many work on `queue`, those that leave included.
    pub(super) fn running(&self, queue: &str) -> usize {
        self.all.iter().filter(|hand| hand.queue == queue).count()
    }

    /// Starts what is missing, doomed ones among them.
    pub(super) fn fill(&mut self) -> Result<()> {
        for queue in QUEUES {
            let at_work = self.all.iter().filter(|hand| hand.queue == queue && !hand.is_leaving).count();
            for _ in at_work..WORKERS {
                let doom = (self.dice.below(DOOMED) == 0).then(|| STEPS[self.dice.below(STEPS.len())]);
                self.start(queue, doom)?;
            }
        }
        Ok(())
    }

    /// Starts workers for `queue` that don't die by themselves.
    pub(super) fn calm(&mut self, queue: &'static str) -> Result<()> {
        (0..WORKERS).try_for_each(|_| self.start(queue, None))
    }

    fn start(&mut self, queue: &'static str, doom: Option<&str>) -> Result<()> {
        let name = format!("{queue}-{}", self.started);
        let url = format!("{}?heartbeat=2", self.proxies[self.started % 2].url());
        self.started += 1;
        let mut options = vec!["--concurrency", "4", "--max-idle", "1s"];
        options.extend(["--start-deadline", "5m", "--reconnect-for", "5m"]);
        options.extend(["--grace", GRACES[self.dice.below(GRACES.len())]]);
        let handler = format!("{HANDLER}\n{NOTE_DONE}").replace("/done", &format!("/{queue}.done"));
        let (kind, script) = match self.dice.below(2) {
            0 => ("exec", format!("CHILD=; {handler}")),
            _ => ("stdio", format!("CHILD=$$; {}", LINES.replace("HANDLER", &handler))),
        };
        let arguments = [&[kind, "--queue", queue], &options[..], &["--", "sh", "-c", &script]].concat();
        let mut environment = vec![("MAYFLY_BROKER_URL", url.as_str())];
        environment.extend(doom.map(|step| ("MAYFLY_CRASH_AT", step)));
        let worker = self.crew.start_with(&name, &arguments, &environment)?;
        self.all.push(Hand { name, queue, worker, is_doomed: doom.is_some(), is_leaving: false });
        Ok(())
    }

    /// Takes note of those that have ended; each may end only in ways that are known.
    pub(super) fn tend(&mut self) -> Result<()> {
        for mut hand in mem::take(&mut self.all) {
            match hand.worker.process.ended()? {
                Some(status) => self.ended(&hand, status)?,
                None => self.all.push(hand),
            }
        }
        Ok(())
    }

    fn ended(&mut self, hand: &Hand, status: ExitStatus) -> Result<()> {
        let how = match (status.code(), status.signal().and_then(Signal::from_named_raw)) {
            (None, Some(Signal::KILL)) => "killed by poison",
            (None, Some(Signal::ABORT)) if hand.is_doomed => "dead at some step",
            (None, Some(Signal::TERM)) if hand.is_leaving && hand.worker.status()?.is_empty() => {
                "stopped before it began"
            }
            (Some(exit::OK), None) => {
                let report = hand.worker.report(exit::OK)?;
                let settled = report.done + report.retried + report.dead_lettered + report.given_back;
                ensure!(report.messages >= settled, "{}: {report:?}", hand.name);
                match report.reason {
                    ExitReason::Idle => "idle",
                    ExitReason::AskedToStop if hand.is_leaving => "stopped",
                    _ => bail!("{}: {report:?}", hand.name),
                }
            }
            _ => bail!("{} ended with {status}\n{}", hand.name, hand.worker.process.log_tail()),
        };
        self.count(hand, how)
    }

    /// Kills any of those at work, with its handlers.
    pub(super) async fn kill(&mut self) -> Result<()> {
        let Some(index) = self.any() else { return Ok(()) };
        let mut hand = self.all.swap_remove(index);
        match self.crew.kill(&hand.name, &mut hand.worker).await {
            Ok(true) => self.count(&hand, "killed in a handler"),
            Ok(false) => self.count(&hand, "killed"),
            Err(error) => match hand.worker.process.ended()? {
                // It was faster.
                Some(status) => self.ended(&hand, status),
                None => Err(error),
            },
        }
    }

    /// Asks any of those at work to stop.
    pub(super) fn stop(&mut self) -> Result<()> {
        if let Some(index) = self.any() {
            let hand = &mut self.all[index];
            hand.is_leaving = true;
            hand.worker.process.signal(Signal::TERM)?;
        }
        Ok(())
    }

    fn any(&mut self) -> Option<usize> {
        let at_work: Vec<_> = (0..self.all.len()).filter(|index| !self.all[*index].is_leaving).collect();
        at_work.get(self.dice.below(at_work.len())).copied()
    }

    fn count(&mut self, hand: &Hand, how: &'static str) -> Result<()> {
        *self.ends.entry(how).or_default() += 1;
        let log = hand.worker.process.log()?;
        for line in log.lines().filter(|line| line.contains("\"connection lost\"")) {
            for (what, _) in LOSSES.iter().filter(|(_, sign)| line.contains(sign)) {
                *self.losses.entry(what).or_default() += 1;
            }
        }
        Ok(())
    }

    /// For people.
    pub(super) fn told(&self) -> String {
        format!("{} workers, ended {:?}, {:?}", self.started, self.ends, self.losses)
    }
}
