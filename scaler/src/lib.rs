//! mayfly's scaler: observe → remember → decide → share → launch.

pub mod config;
pub mod policy;
pub mod time;
