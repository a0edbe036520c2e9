//! The specification of the policy, as tests: tables of named scenes, and random histories.

mod age;
mod arrivals;
mod decide;
mod earlier_system;
mod estimate;
mod history;
mod judge;
mod pending;
mod promises;
mod record;
mod scalers;
mod scene;
mod share;
mod suspects;
mod withdraw;
mod world;
