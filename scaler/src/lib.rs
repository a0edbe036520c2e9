//! mayfly's scaler: observe → remember → decide → share → launch.
//!
//! [`policy`] is pure; [`control`] is the loop around it; [`observe`], [`launcher`] and [`state`] do the IO.

pub mod check;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control;
pub mod explain;
pub mod launcher;
pub mod observe;
pub mod policy;
pub mod run;
pub mod setup;
pub mod state;
pub mod state_command;
pub mod status;
pub mod time;
