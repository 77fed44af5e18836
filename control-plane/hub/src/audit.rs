//! `roadstead-hub audit verify`: walks every tenant's chain of audit records.

use crate::serve::Database;
use anyhow::Context as _;
use roadstead_store::{Store, StoreOptions};
use std::{path::PathBuf, process::ExitCode};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Finds changed, removed and reordered records. Exit code 1 if there are any.
    Verify {
        /// Folder of `roadstead-hub dev`.
        #[arg(long, value_name = "DIR", conflicts_with_all = ["database", "database_file"])]
        state: Option<PathBuf>,
        #[command(flatten)]
        database: Database,
    },
}

/// Prints a line for each tenant.
///
/// # Errors
/// When the database cannot be read; a broken chain is an exit code.
#[expect(clippy::print_stdout, reason = "the output of this command")]
pub(crate) async fn run(Command::Verify { state, database }: Command) -> anyhow::Result<ExitCode> {
    let store = match state {
        Some(folder) => {
            let file = folder.join("hub.db");
            anyhow::ensure!(
                file.is_file(),
                "{}: expected a state folder of dev, found no hub.db in it",
                folder.display()
            );
            let options = StoreOptions::new(format!("sqlite:{}", file.display()));
            Store::open(options)
                .await
                .context("the database cannot be used")?
        }
        None => database.open().await?,
    };
    let mut whole = true;
    for report in roadstead_service::audit::verify(&store).await? {
        whole &= report.broken.is_none();
        match report.broken {
            None => println!("{}: whole, {} records", report.tenant_name, report.records),
            Some(broken) => println!(
                "{}: BROKEN after {} records: {broken}",
                report.tenant_name, report.records
            ),
        }
    }
    store.close().await;
    Ok(if whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
