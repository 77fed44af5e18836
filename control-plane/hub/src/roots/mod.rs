//! `roadstead-hub roots`: the operator's steps of a rotation, and how a running hub follows them.
//!
//! Each step is decided by [`Ring`] from what the folder of keys and the database say, recorded in the platform's audit
//! log, and then done by replacing one file in the folder. Hubs look at that file every two seconds and go on with what
//! they find; no session ends by it that need not.

mod follow;
mod report;
mod tenants;

pub(crate) use follow::Follower;
pub(crate) use report::{ages, progress, replicas, time_left};

use crate::{composition::TRUST_DOMAIN, keys, serve::Database};
use anyhow::Context as _;
use roadstead_domain::{Clock as _, OsRandom, SystemClock};
use roadstead_fleet::{
    Authority, Folder, KeyStore as _, StoredRoots,
    roots::{FOREIGN, Ring, Root, Step},
};
use roadstead_service::roots::{self, Holders};
use roadstead_store::{Store, StoreOptions};
use serde_json::{Map, json};
use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tenants::{Left, each};

const RETIRE_NOW: &str = "roots.retire.now";
/// How long a root that somebody has may stay trusted so that join tokens end before it does.
const BEFORE: Duration = Duration::from_secs(3);
/// How long they are tried to end after it.
const AFTER: Duration = Duration::from_secs(60);
/// How long the database is asked who has which roots.
const ASKED: Duration = Duration::from_secs(30);
/// Names that one audit record holds; their number is in it in any case.
const NAMED: usize = 100;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Which roots there are, how far a rotation is, and who waits for what.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Makes a new root and announces it: cluster agents get it into their trust bundle; the old one goes on signing.
    Add {
        #[command(flatten)]
        place: Place,
    },
    /// Takes the announcement back. Possible until the switch.
    Abort {
        #[command(flatten)]
        place: Place,
    },
    /// The announced root signs from now on, and cluster agents are told to renew their certificates.
    Switch {
        #[command(flatten)]
        place: Place,
        /// Go on although so many clusters (exactly) have not said that they keep the new root. They find the hub until
        /// the old root is retired.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        behind: usize,
    },
    /// Ends the trust in the old root.
    Retire {
        #[command(flatten)]
        place: Place,
        /// Go on although so many clusters (exactly) depend on it. They must join anew, with new join tokens.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        cut_off: usize,
        /// Somebody else may have the keys: a new root takes the place of all in one step, from wherever a rotation is.
        /// Every cluster is cut off (`--cut-off` is then the most that may be), unused join tokens end.
        #[arg(long)]
        now: bool,
        /// With `--now`, during a rotation: the key of the old root alone is lost, never that of the newer one, which
        /// stays. Their keys lie in one folder.
        #[arg(long, requires = "now")]
        keep_new: bool,
    },
}

/// What every step needs.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    #[command(flatten)]
    database: Database,
    /// Folder of the hub's own keys.
    #[arg(long, value_name = "DIR", env = "ROADSTEAD_KEYS")]
    keys: PathBuf,
}

/// Does one step, or shows how things stand.
///
/// # Errors
/// When the step is not to be taken now, or cannot be kept; then everything is as before.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { place } => list(&place).await,
        Command::Add { place } => act(&place, "roots.add", |work| work.add()).await,
        Command::Abort { place } => act(&place, "roots.abort", |work| Ok(work.ring().abort()?)).await,
        Command::Switch { place, behind } => {
            let step = |work: &mut Work| Ok(work.ring().switch(&work.holders, work.now_ms, behind)?);
            act(&place, "roots.switch", step).await
        }
        Command::Retire {
            place,
            cut_off,
            now: false,
            ..
        } => {
            let step = |work: &mut Work| Ok(work.ring().retire(&work.holders, work.now_ms, cut_off)?);
            act(&place, "roots.retire", step).await
        }
        Command::Retire {
            place,
            cut_off,
            now: true,
            keep_new,
        } => {
            let step = |work: &mut Work| work.replace_now(cut_off, keep_new);
            act(&place, RETIRE_NOW, step).await
        }
    }
}

/// Everything that a step is decided by.
struct Work {
    stored: StoredRoots,
    holders: Holders,
    now_ms: i64,
}

impl Work {
    fn ring(&self) -> &Ring {
        &self.stored.ring
    }

    /// A new root, with its key among those that are kept if the step is.
    fn fresh(&mut self) -> anyhow::Result<Root> {
        let made = Authority::generate_root(TRUST_DOMAIN, &SystemClock, &OsRandom);
        let (root, key) = made.context("making a root")?;
        self.stored.keys.insert(root.id(), key);
        Ok(root)
    }

    fn add(&mut self) -> anyhow::Result<Step> {
        let root = self.fresh()?;
        Ok(self.ring().add(root)?)
    }

    fn replace_now(&mut self, cut_off: usize, keep_new: bool) -> anyhow::Result<Step> {
        if keep_new {
            return Ok(self.ring().keep_new_now(&self.holders, cut_off)?);
        }
        let root = self.fresh()?;
        // The folder may be all that is left of an earlier time: what it makes must count beyond what was heard of since.
        let heard = roots::heard(&self.holders, FOREIGN);
        self.stored.ring.generation = self.stored.ring.generation.max(heard);
        Ok(self.ring().replace_now(root, &self.holders, cut_off)?)
    }
}

async fn act(
    place: &Place,
    action: &str,
    step: impl FnOnce(&mut Work) -> anyhow::Result<Step>,
) -> anyhow::Result<()> {
    keys::folder(&place.keys)?;
    let _lock = lock(&place.keys)?;
    let folder = Folder(place.keys.clone());
    let stored = load(&folder)?;
    // What a step before has left behind. If that cannot be done, this step may be all the more needed.
    if let Err(error) = folder.tidy(&stored) {
        report::untidy(&error);
    }
    let store = place.database.open().await?;
    let done = decide_and_keep(&store, &folder, stored, action, step).await;
    store.close().await;
    let done = done?;
    report::done(&done.step, &done.holders, SystemClock.now_ms());
    match done.left {
        None => Ok(()),
        Some(left) => Err(left.context("the step is done, what follows it is not")),
    }
}

/// A step that was taken.
struct Done {
    step: Step,
    holders: Holders,
    /// What could not be done after it.
    left: Option<anyhow::Error>,
}

async fn decide_and_keep(
    store: &Store,
    folder: &Folder,
    stored: StoredRoots,
    action: &str,
    step: impl FnOnce(&mut Work) -> anyhow::Result<Step>,
) -> anyhow::Result<Done> {
    let before = stored.ring.describe();
    let mut work = Work {
        stored,
        holders: holders(store).await?,
        now_ms: SystemClock.now_ms(),
    };
    let step = step(&mut work)?;
    work.stored.ring = step.ring.clone();
    let named: Vec<_> = step.behind.iter().take(NAMED).collect();
    let detail = json!({
        "generation": step.ring.generation,
        "before": before,
        "after": step.ring.describe(),
        "left_behind": step.behind.len(),
        "clusters": named,
    });
    let detail = detail.as_object().cloned().unwrap_or_default();
    let root = step.ring.signer().id();
    // First the record: an act that nobody can be told of is not done.
    roots::record(store, action, false, root.as_str(), detail)
        .await
        .context("the audit record")?;
    let now = action == RETIRE_NOW;
    // What is left then is tried again below: no tenant's audit log may keep a stolen root trusted.
    let mut ended = match now {
        true => end_join_tokens(store, BEFORE).await.0,
        false => 0,
    };
    if let Err(error) = folder.save(&work.stored) {
        if now {
            report::tokens(ended);
        }
        let why = Map::from_iter([("error".to_owned(), error.to_string().into())]);
        roots::record(store, action, true, root.as_str(), why).await?;
        return Err(error).with_context(|| {
            format!(
                "keeping the roots in {}; they have not changed",
                folder.0.display()
            )
        });
    }
    let tidied = folder.tidy(&work.stored);
    let mut left = tidied
        .context("tidying up failed; the next step repeats it")
        .err();
    if now {
        // Those that are left, and those that were made meanwhile.
        report::kept();
        let (more, unended) = end_join_tokens(store, AFTER).await;
        ended += more;
        report::tokens(ended);
        left = unended.map(report::unended).or(left);
    }
    Ok(Done {
        step,
        holders: work.holders,
        left,
    })
}

/// Ends unused join tokens in every tenant: how many, and where it could not be done in time.
async fn end_join_tokens(store: &Store, within: Duration) -> (u64, Option<Left>) {
    let end = async |tenant| roots::end_join_tokens(store, tenant).await;
    let ended = each(within, async || roots::tenants(store).await, end).await;
    (ended.done.into_iter().sum(), ended.left)
}

/// Who has which roots. One statement that fails is not the end of it, and one tenant's database that waits holds up no
/// other's.
async fn holders(store: &Store) -> anyhow::Result<Holders> {
    let look = async |tenant| roots::holders_of(store, tenant).await;
    let found = each(ASKED, async || roots::tenants(store).await, look).await;
    match found.left {
        None => Ok(Holders::of(found.done)),
        Some(left) => Err(anyhow::Error::new(left.why).context("who has which roots")),
    }
}

async fn list(place: &Place) -> anyhow::Result<()> {
    keys::folder(&place.keys)?;
    let stored = load(&Folder(place.keys.clone()))?;
    let holders = look(&place.database.url()?).await?;
    report::list(&stored.ring, &holders, SystemClock.now_ms());
    Ok(())
}

/// Who has which roots, as the database says it; nothing is written.
///
/// # Errors
/// When the database does not answer, or is older than this program.
pub(crate) async fn look(url: &str) -> anyhow::Result<Holders> {
    let options = StoreOptions {
        read_only: true,
        ..StoreOptions::new(url)
    };
    let store = Store::open(options)
        .await
        .context("the database cannot be used")?;
    let holders = holders(&store).await;
    store.close().await;
    holders
}

/// Refuses a folder of keys that is older than what the hub has worked with before: it would bring back what was retired.
///
/// # Errors
/// It is, or the database does not say.
pub(crate) async fn not_older(store: &Store, found: u64) -> anyhow::Result<()> {
    let holders = holders(store).await?;
    let heard = roots::heard(&holders, FOREIGN);
    anyhow::ensure!(
        found >= heard,
        "the folder of keys holds roots of generation {found}, and the database has heard of generation {heard}: an older \
         copy of the folder would bring retired roots back. Bring the current one; if it is lost, `roadstead-hub roots \
         retire --now` makes roots that count again, and every cluster joins anew"
    );
    Ok(())
}

fn load(folder: &Folder) -> anyhow::Result<StoredRoots> {
    let loaded = folder.load().with_context(|| folder.0.display().to_string())?;
    loaded.with_context(|| {
        format!(
            "{} holds no root: is it the folder of keys? The hub makes the first one at its first start",
            folder.0.display()
        )
    })
}

/// Steps come one after the other.
fn lock(folder: &Path) -> anyhow::Result<fs::File> {
    let path = folder.join("roots.lock");
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            anyhow::bail!("another `roadstead-hub roots` works in this folder")
        }
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
    }
}
