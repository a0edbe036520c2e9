//! `mayfly-worker`: consume, handle, settle, exit.

use std::process;

use mayfly_service::{ExitCode, Shutdown, tls};

fn main() -> process::ExitCode {
    tls::install_provider();
    let cli = match mayfly_worker::parse() {
        Ok(cli) => cli,
        Err(code) => return code.into(),
    };
    // One thread: handlers are processes, and a small worker starts faster and costs less.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map(|runtime| {
        // A task of its own: to wake what `block_on` itself drives takes a system call each time.
        runtime.block_on(async {
            Ok::<_, std::io::Error>(tokio::spawn(mayfly_worker::run(cli, Shutdown::on_signals()?)).await?)
        })
    });
    match ended {
        Ok(Ok(code)) => code.into(),
        Ok(Err(error)) | Err(error) => {
            eprintln!("mayfly-worker: {error}");
            ExitCode::Internal.into()
        }
    }
}
