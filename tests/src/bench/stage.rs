//! What is measured on: a node of our own, and a directory for logs and files.

use anyhow::Result;
use mayfly_tests::{Node, Program, Release};
use tempfile::TempDir;

/// A node and a directory, both gone when dropped.
pub(crate) struct Stage {
    pub(crate) node: Node,
    pub(crate) directory: TempDir,
}

// === impl Stage ===

impl Stage {
    pub(crate) async fn set() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("mayfly-bench-").tempdir()?;
        Ok(Self { node: Node::start(Release::Packaged).await?, directory })
    }

    pub(crate) fn url(&self) -> String {
        self.node.broker().url()
    }

    /// One of mayfly's programs, set up to use the node.
    pub(crate) fn program(&self, name: &str) -> Result<Program> {
        Ok(Program::of_mayfly(name, self.directory.path())?.env("MAYFLY_BROKER_URL", self.url()))
    }

    /// A baseline in a process of its own, set up to use the node.
    pub(crate) fn baseline(&self) -> Result<Program> {
        let own = std::env::current_exe()?;
        let program = Program::new(&own, self.directory.path()).arg("baseline");
        Ok(program.env("MAYFLY_BROKER_URL", self.url()))
    }
}
