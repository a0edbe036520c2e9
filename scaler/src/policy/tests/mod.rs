//! The specification of the policy, as tests: tables of named scenes, and random histories.

mod advice;
mod age;
mod age_counted;
mod arrivals;
mod decide;
mod differential;
mod earlier_loop;
mod earlier_system;
mod estimate;
mod history;
mod judge;
mod pending;
mod plan;
mod promises;
mod record;
mod restart;
mod saturation;
mod scalers;
mod scene;
mod shards;
mod share;
mod slo;
mod suspects;
mod waiting;
mod withdraw;
mod world;
