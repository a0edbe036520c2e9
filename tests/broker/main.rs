//! Black-box tests on real brokers. Run them with `bin/test broker`, which starts the brokers.
//!
//! One module for each part; a test is an `async fn(&Bed) -> Result<()>` named in `on_each_release!`.

mod harness;
mod ledger;
mod publisher;
mod scaler;
mod tls;
mod worker;
