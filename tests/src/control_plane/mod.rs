//! A real Kubernetes control plane under tests: its API behind a proxy that can misbehave, its kubelets and
//! its node autoscaler played by us.

mod api_proxy;
mod install;
mod invariants;
mod objects;
mod played;
mod pod;
mod request;
mod rule;
mod space;
mod worker_job;

pub use api_proxy::{ApiProxy, Door};
pub use played::{Kubelet, Seen};
pub use pod::Script;
pub use request::Request;
pub use rule::{Act, Rule};
pub use space::{KUBECONFIG, Space, run};
pub use worker_job::WorkerJob;
