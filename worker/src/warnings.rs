//! What a worker finds doubtful about its queue, told once it is ready: it must not make a start longer.

use mayfly_broker::{Channel, Connection, DeadLetters};
use mayfly_service::chain;
use tokio::task::JoinSet;

use crate::{
    options::Options,
    status::{CONSUMER_TIMEOUT, long_work},
};

/// What is known without asking.
pub(crate) fn at_start(options: &Options) {
    if let Some(timeout) = options.timeout.filter(|timeout| *timeout > CONSUMER_TIMEOUT) {
        let timeout = humantime::format_duration(timeout);
        tracing::warn!("{}", long_work(&format!("a message may take {timeout} (--timeout)")));
    }
}

/// Asks the broker on a channel of its own, in `background`. The broker notes the question as an error, so only the
/// pool's first worker asks, or one that was started by hand, and nobody who knows the answer.
pub(crate) async fn ask(options: &Options, connection: &Connection, background: &mut JoinSet<()>) {
    if options.declare || !options.is_first() {
        return;
    }
    // Without a channel there is no connection either, which others will notice.
    if let Ok(channel) = connection.channel().await {
        background.spawn(about_dead_letters(channel, options.queue.clone()));
    }
}

async fn about_dead_letters(channel: Channel, queue: String) {
    match channel.dead_letters(&queue).await {
        Ok(DeadLetters::None) => tracing::warn!(
            "queue {queue} was declared without dead-lettering: what the broker itself gives up (since RabbitMQ 4.0 \
             also a message whose worker died 20 times) is lost, unless a policy dead-letters it (policy \
             dead-letter-exchange, or declare it anew: mayfly-publisher declare {queue})"
        ),
        Ok(DeadLetters::Some | DeadLetters::Unknown) => {}
        Err(error) => tracing::debug!(error = chain(&error), "cannot ask for dead-lettering"),
    }
}
