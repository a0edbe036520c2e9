//! `publish`: from the command line to the summary.

use mayfly_broker::BrokerArgs;
use mayfly_service::{ExitCode, Shutdown};
use tokio::time::Instant;

use crate::{
    args::{Output, PublishArgs},
    delivery::{Delivery, End, IdsFile, Limits},
    failure::Failure,
    input::Source,
    output,
    progress::Progress,
    tally::{Ending, Ids, messages},
    url,
};

/// Publishes, then tells what became of the messages.
pub(crate) async fn publish(
    args: PublishArgs,
    broker: &BrokerArgs,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    if args.bodies.is_empty() && args.count.is_none() && args.stdin.is_none() {
        return Err(Failure::new(ExitCode::Usage, "nothing to publish")
            .with_next("give bodies as arguments, --count N, or --stdin lines|json"));
    }
    let url = url(broker)?;
    let source = tokio::select! {
        source = Source::open(&args) => source?,
        () = shutdown.stop.cancelled() => {
            return Err(Failure::new(ExitCode::TempFail, "interrupted; nothing was published"));
        }
    };
    let total = source.left();
    let PublishArgs { window, ids, reconnect_for, blocked_for, full_for, quiet, output: format, .. } = args;
    let limits = Limits { window: window.get(), reconnect_for, blocked_for, full_for };
    let ids = ids.map(IdsFile::create).transpose()?;
    let progress = Progress::new(total, quiet);
    let begun = Instant::now();
    let mut delivery = Delivery::begin(url, limits, source, progress, ids, shutdown).await?;
    let end = delivery.run().await;

    let Delivery { tally, pending, uncertain, source, .. } = delivery;
    let ending =
        Ending { not_confirmed: pending.len() as u64, not_sent: source.left(), took: begun.elapsed() };
    let summary = match format {
        Output::Text => tally.as_text(ending),
        Output::Json => tally.as_json(ending),
    };
    output::print(summary.as_bytes())?;
    if !pending.is_empty() {
        let ids: Ids = pending.into_iter().map(|message| message.message_id).collect();
        let why = if uncertain { "the broker may have some of them" } else { "the broker refused them" };
        eprintln!("not confirmed; {why}: {ids}");
    }
    let refusal = tally.refusal();
    match (end, refusal) {
        (End::Complete, None) => Ok(()),
        (End::Complete, Some(refusal)) => Err(refusal),
        (End::Interrupted, refusal) => {
            tell(refusal);
            let rest = match ending.not_sent {
                Some(not_sent) => format!("{} not sent", messages(not_sent)),
                None => "the rest was not read".to_owned(),
            };
            Err(Failure::new(ExitCode::TempFail, format!("interrupted; {rest}")))
        }
        (End::Failed(failure), refusal) => {
            tell(refusal);
            Err(failure)
        }
    }
}

fn tell(refusal: Option<Failure>) {
    if let Some(refusal) = refusal {
        eprint!("{refusal}");
    }
}
