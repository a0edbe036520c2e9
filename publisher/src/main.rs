//! The `mayfly-publisher` program.

use std::process::ExitCode;

use clap::Parser;
use mayfly_publisher::Args;
use mayfly_service::{Shutdown, exit, tls};

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let shutdown = match Shutdown::on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            eprintln!("error: cannot listen for signals: {error}");
            return exit::ExitCode::Internal.into();
        }
    };
    tls::install_provider();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // An error means that nobody reads what we print.
            let _ = error.print();
            let code = if error.use_stderr() { exit::ExitCode::Usage } else { exit::ExitCode::Ok };
            return code.into();
        }
    };
    mayfly_publisher::run(args, shutdown).await.into()
}
