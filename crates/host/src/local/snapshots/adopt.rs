//! A snapshot that was taken for one data set and for nothing else becomes that data set: nothing is copied a second time.
//!
//! It is the way of [`retire`](super) backwards. All that can be done is done where the snapshot is, whole and out of everybody's reach; then one
//! rename makes it the data set. Killed before, it is still the snapshot; killed after, it is the data set.

use std::{io, path::Path};

use ocore_model::ids::{DataSetId, SnapshotId};

use super::{LocalHost, MANIFEST, file_store};
use crate::{
    api::{Snapshot, Standing},
    error::{HostError, Result},
    local::{
        below,
        data_sets::{self, Manifest},
        durable::{self, blocking},
        fence::Claim,
        ledger::Allocation,
    },
};

impl LocalHost {
    /// The caller has looked whether the data set is there already. `NotFound` when the snapshot is not.
    pub(in crate::local) async fn adopt_snapshot(
        &self,
        claim: &Claim,
        snapshot: SnapshotId,
        data_set: DataSetId,
        allocation: &Allocation,
        manifest: impl FnOnce(Standing) -> Manifest,
    ) -> Result<Standing> {
        let ours = (self.data_locks.own(snapshot).await, self.data_locks.own(data_set).await);
        let found: Snapshot =
            self.find_snapshot(snapshot)?.ok_or_else(|| HostError::NotFound { what: "snapshot", id: snapshot.to_string() })?;
        let is_foreign = found.instance != claim.instance;
        let standing = match found.standing {
            Standing::Own if is_foreign => Standing::Raw,
            standing => standing,
        };
        let manifest = manifest(standing);
        let place = self.layout.snapshot(snapshot);
        let target = self.layout.data_set(claim.instance, data_set);
        let (database, odoo) = (allocation.postgres.uid, allocation.odoo.uid);
        claim.check()?;
        // The locks move along: who removes either after this call was dropped waits for the thread, and finds what it has made.
        blocking(move || {
            let _ours = ours;
            let failed = |what: &'static str| {
                let place = place.clone();
                move |error: io::Error| HostError::machine_from(format!("{} {what}: {error}", place.display()), error)
            };
            if is_foreign {
                // Whoever was logged in at the source must not be logged in at the copy.
                durable::remove_tree(&place.join("data_dir/sessions"))?;
            }
            give(&place.join("pgdata"), database).and_then(|()| give(&place.join("data_dir"), odoo)).map_err(failed("keeps its owner"))?;
            manifest.write(&place)?;
            data_sets::open_to_group(&place, odoo)?;
            durable::sync_file_system(&place)
                .and_then(|()| std::fs::rename(&place, &target))
                .and_then(|()| durable::sync_parent(&target))
                .and_then(|()| durable::sync_parent(&place))
                .map_err(failed("could not become a data set"))?;
            // In a data set it means nothing.
            durable::remove_fleeting(&target.join(MANIFEST)).map_err(failed("could not be tidied up"))
        })
        .await?;
        Ok(standing)
    }
}

/// Gives a tree to another owner; links are changed, not followed, and what is sealed stays so. Done already is done.
fn give(tree: &Path, owner: u32) -> io::Result<()> {
    below::change_owner(tree, owner, owner, |entry| {
        let is_sealed = entry.status.st_uid == 0 && entry.status.st_mode & 0o777 == 0o444;
        entry.is_file() && is_sealed && file_store::is_content(entry.path)
    })
}
