//! The specification of the policy, as tests: tables of named scenes, and random histories.

mod age;
mod decide;
mod earlier_system;
mod history;
mod judge;
mod pending;
mod promises;
mod record;
mod scalers;
mod scene;
mod share;
mod withdraw;
mod world;
