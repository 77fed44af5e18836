//! What the runtime keeps on disk.
//!
//! ```text
//! <state>/agents/<uid>/unit.json    the last unit that an engine accepted
//!                     /token        the bearer token of local callers (0600)
//!                     /process      pid and start of the running engine
//!                     /journal/     the engine's own
//!                     /engine.log, engine.log.1
//! <state>/engines/<project>.<name>/address, token   for local callers, while the engine listens
//! ```
//! The uid names the folder, so that an agent that was deleted and made anew starts with an empty journal and
//! another token. Names and uids are checked before they come here (`plan`); no path is built from anything else.

use crate::spawn;
use roadstead_plan::EngineUnit;
use roadstead_processes::{Id, Listing, read};
use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// The runtime's whole folder.
#[derive(Clone, Debug)]
pub(crate) struct Root(PathBuf);

impl Root {
    /// Makes the folders, for this user alone.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        make(path)?;
        let root = Self(path.canonicalize()?);
        make(&root.0.join("agents"))?;
        make(&root.0.join("engines"))?;
        Ok(root)
    }

    /// The units that engines accepted before. A file that cannot be read is as good as none: the document is in
    /// the inbox.
    pub(crate) fn stored(&self) -> Vec<EngineUnit> {
        let Ok(folder) = fs::read_dir(self.0.join("agents")) else {
            return Vec::new();
        };
        let read = |agent: fs::DirEntry| {
            let json = fs::read(agent.path().join("unit.json")).ok()?;
            let unit: EngineUnit = serde_json::from_slice(&json).ok()?;
            (agent.file_name().to_str() == Some(unit.uid())).then_some(unit)
        };
        folder.flatten().filter_map(read).collect()
    }

    pub(crate) fn agent(&self, unit: &EngineUnit) -> Folder {
        let bundle = &unit.bundle;
        Folder {
            own: self.0.join("agents").join(unit.uid()),
            public: self
                .0
                .join("engines")
                .join(format!("{}.{}", bundle.project, bundle.name)),
        }
    }

    /// Forgets the unit of an agent that has no supervisor and belongs here no more.
    pub(crate) fn forget(&self, uid: &str) {
        let _ = fs::remove_file(self.0.join("agents").join(uid).join("unit.json"));
    }
}

/// One agent's folders.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    own: PathBuf,
    public: PathBuf,
}

impl Folder {
    /// Makes the folders; gives the token of local callers, new only when there is none.
    pub(crate) fn open(&self, fresh: impl FnOnce() -> String) -> io::Result<String> {
        make(&self.own)?;
        make(&self.journal())?;
        let file = self.own.join("token");
        match fs::read_to_string(&file) {
            Ok(token) if token.len() >= 32 => Ok(token),
            _ => {
                let token = fresh();
                write(&file, token.as_bytes())?;
                Ok(token)
            }
        }
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.own.join("journal")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.own.join("engine.log")
    }

    pub(crate) fn own(&self) -> &Path {
        &self.own
    }

    /// Tells local callers where the engine is and how they prove themselves.
    pub(crate) fn publish(&self, address: &str, token: &str) -> io::Result<()> {
        make(&self.public)?;
        write(&self.public.join("token"), token.as_bytes())?;
        write(&self.public.join("address"), address.as_bytes())
    }

    /// Takes the address back, unless a younger agent of the same name has published its own.
    pub(crate) fn withdraw(&self, token: &str) {
        if self.is_ours(token) {
            let _ = fs::remove_file(self.public.join("address"));
        }
    }

    /// Forgets the agent: its unit and what local callers see. The journal stays: it holds people's conversations,
    /// and run records that may not be delivered yet.
    pub(crate) fn retire(&self, token: &str) {
        if self.is_ours(token) {
            let _ = fs::remove_dir_all(&self.public);
        }
        let _ = fs::remove_file(self.own.join("unit.json"));
    }

    fn is_ours(&self, token: &str) -> bool {
        fs::read_to_string(self.public.join("token")).is_ok_and(|published| published == token)
    }

    pub(crate) fn keep(&self, unit: &EngineUnit) -> io::Result<()> {
        write(&self.own.join("unit.json"), &serde_json::to_vec(unit)?)
    }

    /// Notes which process runs, so that a later cluster agent can tell it from another with the same number.
    pub(crate) fn note(&self, engine: Id) -> io::Result<()> {
        let line = format!("{} {}", engine.pid, engine.started);
        write(&self.own.join("process"), line.as_bytes())
    }

    /// The engine of an earlier cluster agent, if it still runs.
    fn leftover(&self) -> Option<Id> {
        let noted = fs::read_to_string(self.own.join("process")).ok()?;
        let (pid, started) = noted.split_once(' ')?;
        let (pid, started) = (pid.parse().ok()?, started.parse().ok()?);
        // Not to be seen is not gone.
        let ours = read(pid).map_or(true, |listed| {
            listed.is_some_and(|listed| listed.started == started && listed.session == pid)
        });
        ours.then_some(Id { pid, started })
    }

    /// Waits for the engine of an earlier cluster agent, and kills it when it does not go: two engines on one
    /// journal would each believe it theirs.
    pub(crate) async fn clear(&self, patience: Duration) {
        let Some(engine) = self.leftover() else {
            return;
        };
        let deadline = tokio::time::Instant::now() + patience;
        while lives(engine) || session_lives(engine).await {
            if tokio::time::Instant::now() >= deadline {
                spawn::clear(engine).await;
                // What else is left holds no journal, and may be there for good.
                if !lives(engine) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Cheap: one file. Not to be seen is not gone.
fn lives(engine: Id) -> bool {
    read(engine.pid).map_or(true, |found| {
        found.is_some_and(|p| p.started == engine.started && !p.ended)
    })
}

/// Whether the engine, or anything of its session, runs. On a thread of its own: other engines go on meanwhile.
async fn session_lives(engine: Id) -> bool {
    let session = move || Listing::now().map(|all| all.session(engine));
    let listed = tokio::task::spawn_blocking(session).await;
    // Not to be seen is not gone.
    !listed.is_ok_and(|listed| listed.is_ok_and(|session| session.iter().all(|p| p.ended)))
}

fn make(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Replaces a file at once, readable by this user alone.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(content)?;
    fs::rename(&fresh, path)
}
