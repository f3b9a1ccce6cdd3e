#!/bin/sh
# deploy/systemd/install.sh ROOT PREFIX SERVICE... -- writes the units of relay, consumer and services below ROOT/PREFIX/lib,
# and whom they run as. ROOT may be "". Refuses to enable, start or stop any.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$1 prefix=$2
shift 2
units=$root$prefix/lib/systemd/system
install -d "$units"

# render NAME TEMPLATE
render() {
	sed -e "/^@common@\$/{r $here/common.in" -e 'd}' "$here/$2" |
		sed -e "s,@bindir@,$prefix/bin,g" -e "s,@service@,$1,g" >"$units/postrider-$1@.service"
	chmod 644 "$units/postrider-$1@.service"
	echo "  INSTALL  postrider-$1@.service"
}

render relay postrider-relay@.service.in
render consumer postrider-consumer@.service.in
for service; do render "$service" postrider-service@.service.in; done
install -D -m 644 "$here/postrider.sysusers" "$root$prefix/lib/sysusers.d/postrider.conf"
install -D -m 644 "$here/postrider.tmpfiles" "$root$prefix/lib/tmpfiles.d/postrider.conf"
