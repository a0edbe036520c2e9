//! Draws the scene: in place on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use console::{Term, style, truncate_str};

use crate::{
    scene::{Act, Scene, Worker},
    stage::Sighting,
};

/// Without a terminal: a line at least this often.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Width of the progress bar.
const BAR: usize = 30;

/// Standard output.
pub(crate) struct Screen {
    terminal: Term,
    drawn: usize,
    /// Without a terminal: what was last written, and when.
    written: Option<(String, Instant)>,
}

// === impl Screen ===

impl Screen {
    pub(crate) fn new() -> Self {
        Self { terminal: Term::stdout(), drawn: 0, written: None }
    }

    /// Writes lines that stay.
    pub(crate) fn say(&self, text: &str) {
        // Standard output that is gone is no reason to stop.
        let _ = self.terminal.write_line(text);
    }

    /// Writes a line that goes with the next drawing, on a terminal only.
    pub(crate) fn hint(&mut self, text: &str) {
        if self.terminal.is_term() && self.terminal.write_line(&style(text).dim().to_string()).is_ok() {
            self.drawn += 1;
        }
    }

    /// Takes the drawing off the terminal.
    pub(crate) fn clear(&mut self) {
        let _ = self.terminal.clear_last_lines(self.drawn);
        self.drawn = 0;
    }

    /// Draws the scene as it is now.
    pub(crate) fn draw(&mut self, scene: &Scene) {
        if self.terminal.is_term() {
            let width = usize::from(self.terminal.size().1);
            let lines = picture(scene);
            self.clear();
            for line in &lines {
                let _ = self.terminal.write_line(&truncate_str(line, width.saturating_sub(1), "…"));
            }
            self.drawn = lines.len();
        } else {
            self.write_line(scene);
        }
    }

    fn write_line(&mut self, scene: &Scene) {
        let there: Vec<_> = scene.workers.values().filter(|worker| worker.is_there()).collect();
        let pending = there.iter().filter(|worker| worker.phase.starts_with("pending")).count();
        let key = format!("{} {pending} {:?}", there.len(), scene.act());
        let is_news =
            self.written.as_ref().is_none_or(|(last, at)| *last != key || at.elapsed() >= LINE_INTERVAL);
        if is_news {
            self.say(&format!(
                "{:5.1} s  {} of {} done, {}, {} workers ({pending} pending); {}",
                scene.elapsed().as_secs_f64(),
                scene.done.len(),
                scene.published.len(),
                queue(scene),
                there.len(),
                scene.decision(),
            ));
            self.written = Some((key, Instant::now()));
        }
    }
}

fn picture(scene: &Scene) -> Vec<String> {
    let filled = BAR * scene.done.len() / scene.published.len().max(1);
    let bar = format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled));
    let mut lines = vec![
        String::new(),
        format!(
            "messages    {} {} of {} done, {:.0} s",
            style(bar).cyan(),
            scene.done.len(),
            scene.published.len(),
            scene.elapsed().as_secs_f64()
        ),
        format!("queue       {}", queue(scene)),
        format!("decision    {}", scene.decision()),
    ];
    let mut workers: Vec<_> = scene.workers.values().collect();
    workers.sort_by_key(|worker| worker.seen.serial);
    let ended = workers.iter().filter(|worker| !worker.is_there()).count();
    workers.retain(|worker| worker.is_there());
    let title = match scene.act() {
        Act::Working => "workers",
        Act::Leaving | Act::Over => "leaving",
    };
    lines.push(format!("{title:<11} {} there, {ended} ended", workers.len()));
    lines.extend(workers.into_iter().map(worker_line));
    lines
}

fn worker_line(worker: &Worker) -> String {
    let phase = format!("{:<24}", worker.phase);
    let phase = if worker.phase == "ready" { style(phase).green() } else { style(phase).yellow() };
    let Sighting { serial, slot, .. } = worker.seen;
    format!("  #{serial:<3} slot {slot:<3} {phase} {} done", worker.done)
}

fn queue(scene: &Scene) -> String {
    let ready = scene.ready().map_or_else(|| "depth unknown".to_owned(), |ready| format!("{ready} ready"));
    let age = scene.age().map_or_else(String::new, |(estimate, at_most)| {
        let at_most = at_most.map_or_else(String::new, |at_most| format!(" (at most {at_most:.0} s)"));
        format!(", the oldest for about {estimate:.1} s{at_most}")
    });
    format!("{ready}{age}")
}
