//! A handler in Rust that panics: the worker ends with its report, and the messages go back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mayfly_service::report::ExitReason;
use mayfly_tests::{Bed, ids, on_each_release};
use mayfly_worker::{CannotStart, Context, ExitReport, Handler, Message, Options, Outcome, Shutdown, work};

use super::{LIMIT, exit};

/// Panics over one message; others take until they are interrupted.
struct Panics {
    over: String,
    /// Before its first await, or after it.
    at_once: bool,
}

impl Handler for Panics {
    async fn handle(&self, message: &Message, context: &Context) -> Result<Outcome, CannotStart> {
        if message.id() == Some(&*self.over) {
            if !self.at_once {
                tokio::task::yield_now().await;
            }
            #[expect(clippy::panic, reason = "it is what the test is about")]
            {
                panic!("at message {}", self.over);
            }
        }
        context.interrupt.asked().await;
        Ok(Outcome::Interrupted)
    }
}

on_each_release!(a_handler_that_panics_ends_its_worker_in_order_and_loses_nothing);

async fn a_handler_that_panics_ends_its_worker_in_order_and_loses_nothing(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for (kind, queue) in super::both(bed, &client).await? {
        for (one_thread, at_once) in [(true, true), (true, false), (false, true), (false, false)] {
            let published = client.publish(&queue, 3).await?;
            let over = published.iter().nth(1).context("a second message")?.clone();
            let mut options = Options::new(bed.broker.url().parse()?, &queue);
            options.concurrency = options.concurrency.saturating_add(2);
            let handler = Panics { over, at_once };
            let report = tokio::task::spawn_blocking(move || run(&options, handler, one_thread)).await??;
            let told = format!("{kind:?} {one_thread} {at_once}: {report:?}");
            ensure!(report.reason == ExitReason::Internal && report.done == 0, "{told}");
            ensure!(
                mayfly_worker::exit_code(report.reason).code() == u8::try_from(exit::INTERNAL)?,
                "{told}"
            );
            ensure!(report.detail.as_ref().is_some_and(|it| it.contains("a handler panicked")), "{told}");
            let left = client.take_all(&queue, 3, LIMIT).await?;
            ids::assert_same("published", &published, "left", &left)?;
        }
    }
    client.close().await
}

/// In a runtime of its own, as programs have one: a panic that is not caught ends it.
fn run(options: &Options, handler: Panics, one_thread: bool) -> Result<ExitReport> {
    let mut builder = if one_thread {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = builder.worker_threads(1).enable_all().build()?;
    let ended =
        runtime.block_on(tokio::time::timeout(LIMIT, work(options, handler, &Shutdown::default())))?;
    runtime.shutdown_timeout(Duration::ZERO);
    Ok(ended)
}
