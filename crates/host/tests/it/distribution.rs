//! The installed Odoo.

use std::path::Path;

use ocore_host::{local::distribution, testing::progress};

#[tokio::test]
async fn an_installed_odoo_is_found_again() {
    let directory = std::env::var("OCORE_TEST_ODOO").unwrap_or_else(|_| "/var/cache/ocore/odoo".to_owned());
    let directory = Path::new(&directory);
    let version = "19.0".parse().unwrap();
    let (progress, _) = progress();
    let installed = distribution::install(directory, &version, &progress).await.unwrap();
    let found = distribution::find_installed(directory, &version).unwrap().unwrap();
    assert_eq!(installed, found);
    assert!(found.program.is_file() && found.python.exists());
    assert!(found.distribution.modules.len() > 500);
    assert!(found.distribution.modules.iter().any(|module| module.as_str() == "base"));
}
