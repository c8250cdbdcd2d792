"""Which checks of `clipadapter.testing` a broken head or encoder fails."""


def names_of_failed_checks(checks, create, errors=Exception):
    failed = []
    for check in checks:
        try:
            check(create())
        except errors:
            failed.append(check.__name__)
    return failed
