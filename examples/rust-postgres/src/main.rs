//! Books payments into accounts, each exactly once, whatever dies when: the booking and the record that its
//! message is done are one transaction.
//!
//! A message's body is `ACCOUNT AMOUNT`, for example `alice 30`. The program has all options of the
//! command-line worker (`--help`), and as it ends by itself when the queue stays idle.
//!
//! ```sh
//! export MAYFLY_BROKER_URL=amqp://USER:PASSWORD@HOST
//! export MAYFLY_LEDGER_URL=postgres://USER:PASSWORD@HOST/DATABASE
//! psql "$MAYFLY_LEDGER_URL" -c 'CREATE TABLE accounts (name text PRIMARY KEY, balance bigint NOT NULL)'
//! cargo run --package mayfly-example-rust-postgres -- --queue payments --declare
//! ```

use std::{io, process::ExitCode};

use mayfly_worker::{CannotStart, Context, Handler, Message, Outcome, Shutdown, run_with};

struct Book;

impl Handler for Book {
    async fn handle(&self, message: &Message, context: &Context) -> Result<Outcome, CannotStart> {
        let Some((account, amount)) = parse(&message.body) else {
            return Ok(Outcome::DeadLetter { reason: "expected ACCOUNT AMOUNT".to_owned() });
        };
        context
            .in_transaction(async |transaction| {
                let booked = transaction
                    .execute(
                        "UPDATE accounts SET balance = balance + $2 WHERE name = $1",
                        &[&account, &amount],
                    )
                    .await?;
                if booked == 0 {
                    return Err(Outcome::DeadLetter { reason: format!("there is no account {account:?}") });
                }
                Ok(())
            })
            .await
    }
}

fn parse(body: &[u8]) -> Option<(&str, i64)> {
    let (account, amount) = std::str::from_utf8(body).ok()?.trim().split_once(' ')?;
    Some((account, amount.parse().ok()?))
}

#[tokio::main]
async fn main() -> io::Result<ExitCode> {
    Ok(run_with(Book, Shutdown::on_signals()?).await.into())
}
