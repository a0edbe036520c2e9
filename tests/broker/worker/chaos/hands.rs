//! Workers that are replaced as soon as they are gone.

use std::{collections::BTreeMap, mem, os::unix::process::ExitStatusExt, process::ExitStatus};

use anyhow::{Result, bail, ensure};
use mayfly_service::report::ExitReason;
use mayfly_tests::{Proxy, Signal};

use super::{
    super::{Crew, Dice, NOTE_DONE, Worker, exit},
    Lane, Memory,
};

/// All workers of the test.
pub(super) struct Hands<'a> {
    pub(super) crew: Crew<'a>,
    pub(super) lanes: &'a [Lane],
    /// The way to the broker, half of the workers by each.
    pub(super) proxies: [Proxy; 2],
    dice: Dice,
    all: Vec<Hand<'a>>,
    started: usize,
    /// How those ended that are gone.
    ends: BTreeMap<&'static str, usize>,
    /// What they lost before.
    losses: BTreeMap<&'static str, usize>,
}

/// One of them.
struct Hand<'a> {
    name: String,
    lane: &'a Lane,
    worker: Worker,
    /// It dies by itself at this step.
    doom: Option<&'static str>,
    /// It was asked to stop.
    is_leaving: bool,
}

/// At work on each queue.
const WORKERS: usize = 2;
/// One worker of so many is doomed.
const DOOMED: usize = 6;
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
/// How workers end that are killed while they work on something.
const POISONED: &str = "killed by poison";
const IN_HANDLER: &str = "killed in a handler";
/// The ends of a connection that workers tell apart, by words in their logs.
const LOSSES: [(&str, &str); 3] = [
    ("connection lost", ""),
    ("closed by the broker", "CONNECTION_FORCED"),
    ("channel closed by the broker", "delivery acknowledgement"),
];

// === impl Hands ===

impl<'a> Hands<'a> {
    pub(super) async fn new(crew: Crew<'a>, lanes: &'a [Lane], dice: Dice) -> Result<Self> {
        let proxies = [Proxy::before(&crew.broker).await?, Proxy::before(&crew.broker).await?];
        Ok(Self {
            crew,
            lanes,
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
        self.all.iter().filter(|hand| hand.lane.queue == queue).count()
    }

    /// Starts what is missing, doomed ones among them.
    pub(super) fn fill(&mut self) -> Result<()> {
        for lane in self.lanes {
            let is_at_work = |hand: &&Hand<'_>| hand.lane.queue == lane.queue && !hand.is_leaving;
            for _ in self.all.iter().filter(is_at_work).count()..WORKERS {
                let steps = lane.steps();
                let doom = (self.dice.below(DOOMED) == 0).then(|| steps[self.dice.below(steps.len())]);
                self.start(lane, doom)?;
            }
        }
        Ok(())
    }

    /// Starts workers for `lane` that don't die by themselves.
    pub(super) fn calm(&mut self, lane: &'a Lane) -> Result<()> {
        (0..WORKERS).try_for_each(|_| self.start(lane, None))
    }

    fn start(&mut self, lane: &'a Lane, doom: Option<&'static str>) -> Result<()> {
        let queue = lane.queue;
        let name = format!("{queue}-{}", self.started);
        let url = format!("{}?heartbeat=2", self.proxies[self.started % 2].url());
        self.started += 1;
        let mut options = vec!["--concurrency", "4", "--max-idle", "1s"];
        options.extend(["--start-deadline", "5m", "--reconnect-for", "5m"]);
        options.extend(["--grace", GRACES[self.dice.below(GRACES.len())]]);
        let mut environment = vec![("MAYFLY_BROKER_URL", url.as_str())];
        environment.extend(lane.environment.iter().map(|(name, value)| (*name, value.as_str())));
        environment.extend(doom.map(|step| ("MAYFLY_CRASH_AT", step)));
        let note = NOTE_DONE.replace("/done", &format!("/{queue}.done"));
        let handler = format!("{}\n{HANDLER}\n{note}", lane.prologue());
        let (kind, script) = match self.dice.below(2) {
            0 => ("exec", format!("CHILD=; {handler}")),
            _ => ("stdio", format!("CHILD=$$; {}", LINES.replace("HANDLER", &handler))),
        };
        let (program, arguments) = if lane.memory == Memory::Transaction {
            ("rust-postgres", [&["--queue", queue], &options[..]].concat())
        } else {
            let command = ["--", "sh", "-c", &script];
            ("mayfly-worker", [&[kind, "--queue", queue], &options[..], &command].concat())
        };
        let worker = self.crew.start_program(program, &name, &arguments, &environment)?;
        self.all.push(Hand { name, lane, worker, doom, is_leaving: false });
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

    fn ended(&mut self, hand: &Hand<'_>, status: ExitStatus) -> Result<()> {
        let signal = status.signal().and_then(Signal::from_named_raw);
        let how = match (status.code(), signal, hand.doom) {
            (None, Some(Signal::KILL), _) => POISONED,
            (None, Some(Signal::ABORT), Some(step)) => step,
            (None, Some(Signal::TERM), _) if hand.is_leaving && hand.worker.status()?.is_empty() => {
                "stopped before it began"
            }
            (Some(exit::OK), None, _) => {
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
            Ok(true) => self.count(&hand, IN_HANDLER),
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

    fn count(&mut self, hand: &Hand<'_>, how: &'static str) -> Result<()> {
        *self.ends.entry(how).or_default() += 1;
        let log = hand.worker.process.log()?;
        for line in log.lines().filter(|line| line.contains("\"connection lost\"")) {
            for (what, _) in LOSSES.iter().filter(|(_, sign)| line.contains(sign)) {
                *self.losses.entry(what).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Each trouble has met somebody.
    pub(super) fn everything_bit(&self) -> Result<()> {
        let steps = self.lanes.iter().flat_map(|lane| lane.steps().iter().copied());
        for how in steps.chain([POISONED, IN_HANDLER, "stopped", "idle"]) {
            ensure!(self.ends.contains_key(how), "nobody ended {how}: {}", self.told());
        }
        for (what, _) in LOSSES {
            ensure!(self.losses.contains_key(what), "no {what}: {}", self.told());
        }
        Ok(())
    }

    /// For people.
    pub(super) fn told(&self) -> String {
        format!("{} workers, ended {:?}, {:?}", self.started, self.ends, self.losses)
    }
}
