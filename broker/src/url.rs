//! Where the broker is and who we are there; never printed with its password.

use std::{fmt, path::PathBuf, str::FromStr};

/// An AMQP URL with our defaults filled in (`frame_max`, `heartbeat`) where it is silent.
#[derive(Clone)]
pub struct BrokerUrl(lapin::uri::AMQPUri);

/// The URL cannot be used; the text never holds the URL itself.
#[derive(Debug, thiserror::Error)]
pub enum BadUrl {
    /// Not an AMQP URL.
    #[error("broker url is not valid: {0} (expected amqp://USER:PASSWORD@HOST:PORT/VHOST)")]
    Syntax(String),
    /// The file that should hold it cannot be read.
    #[error("broker url file {path:?} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Neither a file nor the environment gives one.
    #[error("no broker url: give --broker-url-file FILE or set {env}")]
    Absent {
        /// The environment variable looked at.
        env: String,
    },
}

/// Where a program finds its broker URL. The URL itself is never an argument: arguments are visible to
/// every user of the machine.
#[derive(Debug, Clone, clap::Args)]
pub struct BrokerArgs {
    /// File that holds the broker's URL (amqp:// or amqps://), for example a mounted Secret.
    #[arg(long, env = "MAYFLY_BROKER_URL_FILE", value_name = "FILE", global = true)]
    pub broker_url_file: Option<PathBuf>,
    /// Environment variable that holds the broker's URL, where no file is given.
    #[arg(long, value_name = "NAME", default_value = "MAYFLY_BROKER_URL", global = true)]
    pub broker_url_env: String,
}

// === impl BrokerUrl ===

impl BrokerUrl {
    /// The same URL with `frame_max` bytes per frame, unless the URL itself says otherwise. lapin keeps
    /// 64 frames per connection: 8192 costs 0.09 MB of memory, its own default 7.8 MB.
    #[must_use]
    pub fn with_default_frame_max(self, _frame_max: u32) -> Self {
        todo!()
    }

    /// `host:port/vhost`, for people.
    #[must_use]
    pub fn endpoint(&self) -> String {
        todo!()
    }

    /// The user that we connect as.
    #[must_use]
    pub fn user(&self) -> &str {
        todo!()
    }

    pub(crate) const fn uri(&self) -> &lapin::uri::AMQPUri {
        &self.0
    }
}

impl FromStr for BrokerUrl {
    type Err = BadUrl;

    fn from_str(_text: &str) -> Result<Self, BadUrl> {
        todo!()
    }
}

/// Without the password.
impl fmt::Debug for BrokerUrl {
    fn fmt(&self, _formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

// === impl BrokerArgs ===

impl BrokerArgs {
    /// Reads the URL: the file where one is named, else the environment variable.
    ///
    /// # Errors
    /// [`BadUrl`] when there is none, or it makes no sense.
    pub fn load(&self) -> Result<BrokerUrl, BadUrl> {
        todo!()
    }
}
