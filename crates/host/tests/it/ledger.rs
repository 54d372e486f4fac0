use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
};

use anyhow::Result;
use futures::future::try_join_all;
use ocore_host::{
    ReleaseId,
    local::ledger::{Allocation, Ledger},
    testing::Sandbox,
};
use ocore_model::{ids::InstanceId, instance::Color};

async fn open(sandbox: &Sandbox) -> Result<Ledger> {
    std::fs::create_dir_all(sandbox.home())?;
    Ok(Ledger::open(sandbox.config()).await?)
}

fn ports(allocation: &Allocation) -> [u16; 5] {
    let ports = allocation.ports;
    [ports.blue.http, ports.blue.websocket, ports.green.http, ports.green.websocket, allocation.mail]
}

#[tokio::test]
async fn instances_that_are_made_at_once_share_nothing() -> Result<()> {
    let sandbox = Sandbox::new()?;
    // Two openings of one home stand for two processes: nothing but the file and its lock is between them.
    let ledgers = [open(&sandbox).await?, open(&sandbox).await?];
    let instances: Vec<InstanceId> = (0..6).map(|_| InstanceId::new()).collect();
    let allocations = try_join_all(instances.iter().enumerate().map(|(n, instance)| ledgers[n % 2].allocate(*instance))).await?;
    let uids: BTreeSet<u32> = allocations.iter().flat_map(|allocation| [allocation.postgres.uid, allocation.odoo.uid]).collect();
    let all_ports: BTreeSet<u16> = allocations.iter().flat_map(ports).collect();
    assert_eq!((uids.len(), all_ports.len()), (12, 30));
    for (instance, allocation) in instances.iter().zip(&allocations) {
        assert_eq!(&ledgers[0].allocate(*instance).await?, allocation, "asking again gives the same");
        assert_eq!(nix::unistd::User::from_name(&allocation.odoo.name)?.map(|user| user.uid.as_raw()), Some(allocation.odoo.uid));
    }
    Ok(())
}

#[tokio::test]
async fn a_damaged_ledger_is_put_together_again_without_clashes() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let ledger = open(&sandbox).await?;
    let (one, two) = (InstanceId::new(), InstanceId::new());
    let first = ledger.allocate(one).await?;
    let second = ledger.allocate(two).await?;
    std::fs::write(sandbox.home().join("ledger.json"), "{\"instances\": {")?;
    let ledger = open(&sandbox).await?;
    assert_eq!(ledger.allocate(one).await?, first);
    let again = ledger.allocate(two).await?;
    assert_eq!((&again.postgres, &again.odoo), (&second.postgres, &second.odoo));
    let third = ledger.allocate(InstanceId::new()).await?;
    let uids: BTreeSet<u32> =
        [&first, &again, &third].iter().flat_map(|allocation| [allocation.postgres.uid, allocation.odoo.uid]).collect();
    let all_ports: BTreeSet<u16> = [&first, &again, &third].into_iter().flat_map(ports).collect();
    assert_eq!((uids.len(), all_ports.len()), (6, 15));
    Ok(())
}

#[tokio::test]
async fn an_instance_from_before_there_were_mail_catchers_gets_a_port_for_one() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let instances = [InstanceId::new(), InstanceId::new()];
    let ledger = open(&sandbox).await?;
    let allocations = try_join_all(instances.map(|instance| ledger.allocate(instance))).await?;
    let mut book: serde_json::Value = serde_json::from_slice(&std::fs::read(sandbox.home().join("ledger.json"))?)?;
    for instance in instances {
        book["instances"][instance.to_string()].as_object_mut().and_then(|entry| entry.remove("mail")).expect("a port");
    }
    std::fs::write(sandbox.home().join("ledger.json"), book.to_string())?;
    let ledger = open(&sandbox).await?;
    let again = try_join_all(instances.map(|instance| ledger.allocate(instance))).await?;
    let all_ports: BTreeSet<u16> = again.iter().flat_map(ports).collect();
    assert_eq!(all_ports.len(), 10);
    assert_eq!(
        again.iter().map(|allocation| allocation.ports).collect::<Vec<_>>(),
        allocations.iter().map(|allocation| allocation.ports).collect::<Vec<_>>()
    );
    Ok(())
}

#[tokio::test]
async fn a_purge_removes_users_that_the_ledger_has_forgotten() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let allocation = open(&sandbox).await?.allocate(InstanceId::new()).await?;
    for name in ["ledger.json", "ledger.previous.json"] {
        std::fs::write(sandbox.home().join(name), "{\"instances\": {}, \"control\": null, \"releases\": {}, \"foreign_uids\": []}")?;
    }
    let home = sandbox.home().display().to_string();
    drop(sandbox);
    for name in [allocation.postgres.name, allocation.odoo.name] {
        let left = nix::unistd::User::from_name(&name)?.filter(|user| user.gecos.to_string_lossy().ends_with(&home));
        assert_eq!(left, None);
    }
    Ok(())
}

#[tokio::test]
async fn a_port_that_another_program_holds_is_replaced_when_it_is_needed() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let ledger = open(&sandbox).await?;
    let instance = InstanceId::new();
    let before = ledger.allocate(instance).await?.ports;
    assert!(TcpListener::bind((Ipv4Addr::UNSPECIFIED, before.green.http)).is_err(), "it is held from the beginning");
    // While nobody holds it.
    sandbox.config().held_ports()?.release(before.green.http)?;
    let _squatter = TcpListener::bind((Ipv4Addr::UNSPECIFIED, before.green.http))?;
    assert_eq!(ledger.free_slot_ports(instance, Color::Blue).await?, before.blue);
    let green = ledger.free_slot_ports(instance, Color::Green).await?;
    assert_ne!(green.http, before.green.http);
    assert_eq!(green.websocket, before.green.websocket);
    assert_eq!(ledger.find(instance).await?.map(|allocation| allocation.ports.green), Some(green));
    Ok(())
}

#[tokio::test]
async fn releases_have_numbers_of_their_own_which_rest_before_they_are_lent_again() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let ledger = open(&sandbox).await?;
    let (one, two) = (ReleaseId("a".repeat(64)), ReleaseId("b".repeat(64)));
    let gid = ledger.release_gid(&one).await?;
    assert_eq!(ledger.release_gid(&one).await?, gid);
    assert_ne!(ledger.release_gid(&two).await?, gid);
    ledger.forget_release(&one).await?;
    assert!(ledger.release_gid(&ReleaseId("c".repeat(64))).await? > gid + 1);
    Ok(())
}

#[tokio::test]
async fn an_instances_numbers_rest_before_they_are_lent_again() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let ledger = open(&sandbox).await?;
    let instance = InstanceId::new();
    let first = ledger.allocate(instance).await?;
    ledger.release(instance).await?;
    // Also by another oCore on this home.
    let next = open(&sandbox).await?.allocate(InstanceId::new()).await?;
    assert!(next.postgres.uid > first.odoo.uid, "{next:?} after {first:?}");
    Ok(())
}
