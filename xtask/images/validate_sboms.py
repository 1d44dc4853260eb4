"""Whether files have the schema of CycloneDX 1.6, with the names of licences that SPDX has."""
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

for file in sys.argv[1:]:
    with open(file) as text:
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.read())
    if error:
        sys.exit(f"{file}: {error}")
