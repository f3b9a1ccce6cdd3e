#!/bin/sh
# debian/place.sh ROOT -- what make install does not know of Debian: configurations of the services are conffiles, with the sagas they name.
set -eu
share=$1/usr/share/postrider
install -d "$1/etc/postrider/services" "$1/etc/postrider/relay" "$1/etc/postrider/consumer"
for s in user concert queue reservation payment order platform; do
	mv "$share/services/$s.cfg" "$1/etc/postrider/services/$s.cfg"
done
