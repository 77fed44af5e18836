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

/// Prints a line for each tenant. The database is read and nothing else: not made, not migrated.
///
/// # Errors
/// When the database cannot be read, or is no hub's, or has no tenant; a broken chain is an exit code.
#[expect(clippy::print_stdout, reason = "the output of this command")]
pub(crate) async fn run(Command::Verify { state, database }: Command) -> anyhow::Result<ExitCode> {
    let url = match state {
        Some(folder) => {
            let file = folder.join("hub.db");
            anyhow::ensure!(
                file.is_file(),
                "{}: expected a state folder of dev, found no hub.db in it",
                folder.display()
            );
            format!("sqlite:{}", file.display())
        }
        None => database.url()?,
    };
    let evidence = StoreOptions {
        read_only: true,
        ..StoreOptions::new(url)
    };
    let store = Store::open(evidence)
        .await
        .context("the database cannot be used")?;
    let reports = roadstead_service::audit::verify(&store).await?;
    anyhow::ensure!(
        !reports.is_empty(),
        "the database has no tenant, so there is nothing to verify: is it the right one?"
    );
    let mut whole = true;
    for report in reports {
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
