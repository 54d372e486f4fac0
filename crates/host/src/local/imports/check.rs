use crate::{
    api::{CheckImport, ImportFacts, Progress},
    error::{HostError, Result},
    local::LocalHost,
};

impl LocalHost {
    pub(in crate::local) async fn check_upload(&self, _: &CheckImport, _: &Progress) -> Result<ImportFacts> {
        Err(HostError::machine("not built yet"))
    }
}
