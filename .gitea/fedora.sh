#!/usr/bin/env bash
# Builds the packages from the checkout, installs them with dnf, and runs them. Runs as root in a Fedora container.
set -euxo pipefail
cd "$(dirname "$0")/.."
git config --global --add safe.directory '*'
dnf -y install make python3-devel rpm-build rpmlint systemd-rpm-macros firewalld-filesystem man-db 'dnf-command(builddep)'

make srpm RPM_PYTHONS="$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
dnf -y builddep build/rpm/SRPMS/cortex-*.src.rpm
rpmbuild --rebuild --define "_topdir $PWD/build/rpm" build/rpm/SRPMS/cortex-*.src.rpm
rpmlint -c rpm/rpmlint.toml build/rpm/RPMS/x86_64/*.rpm

dnf -y install build/rpm/RPMS/x86_64/*.rpm
getent passwd cortex neuron
test "$(stat -c '%U:%G %a' /etc/cortex/cortex.toml)" = 'root:cortex 640'
test "$(stat -c '%U:%G %a' /etc/cortex/neuron.toml)" = 'root:neuron 640'
cortex version
cortex config check
man --warnings cortex > /dev/null
systemd-analyze verify /usr/lib/systemd/system/{cortex,neuron}.service
systemd-analyze security --offline=true --threshold=20 /usr/lib/systemd/system/cortex.service
systemd-analyze security --offline=true --threshold=45 /usr/lib/systemd/system/neuron.service

# The container has no systemd, so run the programs of the units as their users.
install -d -o neuron -g neuron /var/lib/cortex/neuron
install -d -o cortex -g cortex /var/lib/cortex/gateway
CORTEX_CPU__OFFER=true setpriv --reuid=neuron --regid=neuron --init-groups /usr/libexec/cortex/neuron &
neuron=$!
STATE_DIRECTORY=/var/lib/cortex/gateway CORTEX_NEURONS__0__NAME=here \
  CORTEX_NEURONS__0__ENDPOINT=http://127.0.0.1:9090 \
  setpriv --reuid=cortex --regid=cortex --init-groups /usr/bin/cortex serve gateway &
gateway=$!
curl --fail --retry 30 --retry-connrefused --retry-delay 1 http://127.0.0.1:9090/discovery
curl --fail --retry 30 --retry-connrefused --retry-delay 1 http://127.0.0.1:8000/health
cortex nodes ls
kill "$neuron" "$gateway"
wait "$neuron"
wait "$gateway"
dnf -y remove cortex neuron
