//! Progress on standard error: a bar on a terminal, a line every few seconds elsewhere.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What the user sees while messages are on their way.
#[derive(Debug)]
pub(crate) struct Progress {
    shape: Shape,
    done: u64,
    total: Option<u64>,
}

#[derive(Debug)]
enum Shape {
    Silent,
    Bar(ProgressBar),
    Lines { last: Instant },
}

// === impl Progress ===

impl Progress {
    pub(crate) fn new(total: Option<u64>, quiet: bool) -> Self {
        let shape = if quiet {
            Shape::Silent
        } else if std::io::stderr().is_terminal() {
            Shape::Bar(bar(total))
        } else {
            Shape::Lines { last: Instant::now() }
        };
        Self { shape, done: 0, total }
    }

    /// `count` more messages are settled.
    pub(crate) fn advance(&mut self, count: u64) {
        self.done += count;
        if let Shape::Bar(bar) = &self.shape {
            bar.set_position(self.done);
        }
        self.tick();
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self) {
        if let Shape::Lines { last } = &mut self.shape
            && last.elapsed() >= LINE_EVERY
        {
            *last = Instant::now();
            let of = self.total.map(|total| format!(" of {total}")).unwrap_or_default();
            eprintln!("{}{of} messages published", self.done);
        }
    }

    /// Something the user should know while waiting.
    pub(crate) fn note(&self, text: &str) {
        match &self.shape {
            Shape::Silent => {}
            Shape::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Shape::Lines { .. } => eprintln!("{text}"),
        }
    }

    /// Leaves nothing of the bar behind.
    pub(crate) fn finish(&self) {
        if let Shape::Bar(bar) = &self.shape {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{bar:40} {pos}/{len} messages  {per_sec}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {pos} messages  {per_sec}"),
    };
    bar.enable_steady_tick(Duration::from_millis(100));
    // The template is a constant; should it ever be wrong, the library's own look is good enough.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
