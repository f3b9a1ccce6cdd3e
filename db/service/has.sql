SELECT EXISTS (SELECT FROM service.installed WHERE number = $1::integer AND sha256 = $2)
