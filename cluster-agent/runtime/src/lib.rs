//! Applies a plan with child processes: one engine for each agent.
//!
//! [`Local`] is the handle. It takes [`roadstead_plan::Action`]s, keeps one supervisor for each agent, and tells what
//! it sees: [`Local::observed`] for the next plan, [`Local::status`] for people and the hub, [`Local::logs`] for the
//! engine's own words. A supervisor speaks `contract::control` over the engine's standard input and output.
//!
//! # What is enforced on an engine, and what is not
//! * **Its own session and process group.** When an engine ends, every process of its session is killed, and every
//!   process below one, also such as left the session (see `roadstead_processes`). What is orphaned when an engine
//!   and the guards of its tool servers are killed at once is found too where the process adopts orphans
//!   (`roadstead_processes::adopt_orphans`), as the cluster agent does. An engine that outlived an earlier cluster
//!   agent is killed before another is started on its journal.
//! * **A clean environment**: the variables of [`INHERITED`] and [`Config::environment`], one for the allocator, nothing else. Values for
//!   documents travel over the pipe, only for variables in [`Config::offered`].
//! * **No core dump** (`RLIMIT_CORE` 0; Linux): a core file would hold keys.
//! * **Memory** (`runtime.resources.limits.memory`; Linux): the resident memory of all that is found so is
//!   measured each second; above the limit it is killed and the engine started again with backoff. That
//!   is a bound on what lasts, not on a spike between two looks. No `RLIMIT_AS` or `RLIMIT_DATA`: allocators reserve
//!   far more than they use, and the limit would end engines that are well inside it.
//! * **Processor** (`runtime.resources.limits.cpu`) and **requests**: not enforced; a process can be held to a share
//!   of a processor by a control group alone, and an ordinary user has none to give. [`EngineStatus::unenforced`]
//!   names them.
//!
//! What can go wrong: an engine that cannot start, crashes, hangs, floods or answers nonsense is killed and started
//! again with backoff, and its status says why; no other engine notices.

mod backoff;
mod config;
mod control;
mod folder;
mod local;
mod logs;
mod spawn;
mod status;
mod supervisor;

pub use backoff::Backoff;
pub use config::{Clock, Config, ConfigError, INHERITED, Lookup, Timing, find_engine};
pub use local::{HubTrust, Local, RunSink};
pub use logs::{LogLine, LogStream};
pub use status::{EngineStatus, Phase, Refusal};
