//! A real Kubernetes control plane under tests: its API behind a proxy that can misbehave, its kubelets and
//! its node autoscaler played by us.

mod api_proxy;
mod objects;
mod played;
mod request;
mod space;

pub use api_proxy::{Act, ApiProxy, Door, Rule};
pub use played::{Kubelet, Script, Seen};
pub use request::Request;
pub use space::{KUBECONFIG, Space, WorkerJob, run};
