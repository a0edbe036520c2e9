//! mayfly as its users meet it: installed by its scripts and its chart into a real Kubernetes, with images built
//! here, real pods and a real broker, on nodes that come late and get lost. Run by `bin/test cluster`.

mod burst;
mod failures;
mod lead;
mod nodes;
mod rows;
mod site;
mod takeback;
