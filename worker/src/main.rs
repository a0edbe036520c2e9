//! `mayfly-worker`: consume, handle, settle, exit.

use std::process;

use mayfly_service::{ExitCode, Shutdown, tls};

fn main() -> process::ExitCode {
    // One thread: handlers are processes, and a small worker starts faster and costs less.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.and_then(|runtime| {
        runtime.block_on(async {
            let shutdown = Shutdown::on_signals()?;
            tls::install_provider();
            match mayfly_worker::parse() {
                // A task of its own: to wake what `block_on` itself drives takes a system call each time.
                Ok(cli) => Ok(tokio::spawn(mayfly_worker::run(cli, shutdown)).await?),
                Err(code) => Ok(code),
            }
        })
    });
    match ended {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("mayfly-worker: {error}");
            ExitCode::Internal.into()
        }
    }
}
