//! For tests only: a whole oCore on real PostgreSQL, Git and Odoo in a temporary directory, and what a test does with it.

pub mod client;
pub mod elsewhere;
pub mod host;
pub mod installation;
pub mod module;
pub mod repository;
pub mod scenario;
pub mod store;
pub mod wait;

pub use client::ApiClient;
pub use elsewhere::Elsewhere;
pub use host::NoHost;
pub use installation::{Installation, Options};
pub use repository::{Push, Repository};
pub use scenario::Scenario;
pub use store::Store;
