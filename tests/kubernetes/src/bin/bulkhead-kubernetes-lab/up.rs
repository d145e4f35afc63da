//! `up`: a cluster to try things in.

use std::process::ExitCode;

use bulkhead_kubernetes_tests::cluster::{BULKHEAD_PREFIX, Cluster};
use bulkhead_tests::{LabError, signals, standing};

/// Says what to try, and removes it on Ctrl-C or `down`.
pub fn up(cluster: Cluster) -> Result<ExitCode, LabError> {
    let underlay = cluster.underlay();
    let mut names = Vec::new();
    names.extend(cluster.nodes().iter().map(|node| (node.name().to_owned(), cluster.netns_path(node.name()))));
    for netns in [&underlay.infra, &underlay.outside] {
        names.push((netns.name().to_owned(), netns.path().to_owned()));
    }
    standing::write_names(cluster.id(), &names)?;
    describe(&cluster)?;
    signals::wait()?;
    println!("removing lab {}", cluster.id().number());
    drop(cluster);
    Ok(ExitCode::SUCCESS)
}

fn describe(cluster: &Cluster) -> Result<(), LabError> {
    println!("\n{}", cluster.kubectl().run(&["get", "nodes", "-o", "wide"])?);
    let program = std::env::current_exe().map_or("bulkhead-kubernetes-lab".into(), |path| path.display().to_string());
    let etcd = cluster.etcd_client();
    println!(
        "Try, in another terminal:\n\n\
         \x20 {program} kubectl get pods -A\n\
         \x20 {program} kubectl create namespace a\n\
         \x20 {program} kubectl -n a run web --image={agnhost} -- netexec\n\
         \x20 {program} exec n1 bash\n\
         \x20 {program} exec infra env KUBECONFIG={kubeconfig} \\\n\
         \x20   PATH={programs}:$PATH bash        # an administrator's shell: kubectl, helm\n\
         \x20 {program} exec infra env ETCDCTL_API=3 etcdctl --endpoints {endpoints} \\\n\
         \x20   --cacert {authority} --cert {certificate} --key {key} get --prefix {prefix}\n\n\
         Files of a node are below {dir}/<node>/disk, logs of its services beside that. Ctrl-C ends the lab.",
        agnhost = bulkhead_kubernetes_tests::images::AGNHOST,
        kubeconfig = cluster.kubectl().kubeconfig().display(),
        programs = cluster.programs().dir().display(),
        endpoints = etcd.endpoints,
        authority = etcd.authority.display(),
        certificate = etcd.certificate.display(),
        key = etcd.key.display(),
        prefix = BULKHEAD_PREFIX,
        dir = cluster.dir().display(),
    );
    Ok(())
}
