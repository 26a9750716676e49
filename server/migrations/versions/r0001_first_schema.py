"""First schema: devices, measurements, tables, tasks and jobs.

The statements stand here in full, and not behind a function that may change: this revision stays what it was.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


APPEND_ONLY = {
    "measurements": ("id",),
    "editions": ("id",),
    "rows": ("edition_id", "block_key"),
    "calibrations": ("edition_id", "revision"),
}
"""Tables whose rows never change, with the columns of their primary keys."""


def upgrade() -> None:
    _create_tables()
    for table, key in APPEND_ONLY.items():
        _guard(table, key)


def _guard(table: str, key: tuple[str, ...]) -> None:
    message = f"{table} is append-only: add a new record instead"
    if op.get_bind().dialect.name == "sqlite":
        refuse = f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        op.execute(f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}")
        op.execute(f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}")
        same = " AND ".join(f"{column} = NEW.{column}" for column in key)
        exists = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 - names of our own
        op.execute(f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {exists} {refuse}")
        return
    name = f"{table}_append_only"
    body = f"$$ BEGIN RAISE EXCEPTION '{message}'; END $$"
    op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS {body}")
    op.execute(f"CREATE TRIGGER {name} BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
    truncate = f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
    op.execute(f"CREATE TRIGGER {table}_no_truncate {truncate}")


def _create_tables() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("device_class", sa.String(), nullable=True),
        sa.Column("description", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "device_class IN ('gpu', 'desktop_cpu', 'laptop_cpu', 'jetson', 'server_cpu')",
            name=op.f("ck_devices_device_class"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
        sa.UniqueConstraint("name", name="uq_devices_name"),
    )
    op.create_table(
        "graphs",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("parity", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_graphs_bytes")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_graphs_sha256")),
        sa.PrimaryKeyConstraint("key", name="pk_graphs"),
    )
    op.create_index("ix_graphs_sha256", "graphs", ["sha256"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("request_digest", sa.String(), nullable=True),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("ck_jobs_finished_at"),
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_jobs_error")),
        sa.CheckConstraint("state <> 'succeeded' OR result IS NOT NULL", name=op.f("ck_jobs_result")),
        sa.CheckConstraint(
            "state IN ('submitted', 'queued', 'running', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("(idempotency_key IS NULL) = (request_digest IS NULL)", name=op.f("ck_jobs_idempotency")),
        sa.CheckConstraint("progress >= 0 AND progress <= 1", name=op.f("ck_jobs_progress")),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
    )
    op.create_index("ix_jobs_kind", "jobs", ["kind", "created_at"], unique=False)
    op.create_index("ix_jobs_state", "jobs", ["state", "created_at"], unique=False)
    op.create_table(
        "agents",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("description", sa.JSON(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("protocol", sa.Integer(), nullable=False),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_agents_device_id"),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
    )
    op.create_index("ix_agents_device_id", "agents", ["device_id"], unique=False)
    op.create_table(
        "artifacts",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("bytes >= 0", name=op.f("ck_artifacts_bytes")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_artifacts_sha256")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_artifacts_job_id"),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_sha256", "artifacts", ["sha256"], unique=False)
    op.create_table(
        "busy_machines",
        sa.Column("machine_hash", sa.String(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("machine_hash", name="pk_busy_machines"),
    )
    op.create_table(
        "editions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("runtime", sa.String(), nullable=False),
        sa.Column("runtime_version", sa.String(), nullable=True),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("statistic", sa.String(), nullable=False),
        sa.Column("row_count", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("statistic IN ('hot')", name=op.f("ck_editions_statistic")),
        sa.CheckConstraint("row_count > 0", name=op.f("ck_editions_row_count")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_editions_device_id"),
        sa.PrimaryKeyConstraint("id", name="pk_editions"),
    )
    op.create_index(
        "ix_editions_newest",
        "editions",
        ["device_id", "runtime", "provider", "precision", "threads", "created_at"],
        unique=False,
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=True),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_job_events_seq")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_events_job_id"),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_job_events"),
    )
    op.create_table(
        "measurements",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("item_key", sa.String(), nullable=False),
        sa.Column("block", sa.JSON(), nullable=True),
        sa.Column("graph_sha256", sa.String(), nullable=False),
        sa.Column("runtime", sa.String(), nullable=False),
        sa.Column("runtime_version", sa.String(), nullable=True),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("hot_ms", sa.Double(), nullable=False),
        sa.Column("cold_ms", sa.Double(), nullable=False),
        sa.Column("low_ms", sa.Double(), nullable=False),
        sa.Column("high_ms", sa.Double(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("converged", sa.Boolean(), nullable=False),
        sa.Column("outliers", sa.Integer(), nullable=False),
        sa.Column("rounds", sa.Integer(), nullable=False),
        sa.Column("warmup_runs", sa.Integer(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("samples", sa.LargeBinary(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("late", sa.Boolean(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("hot_ms > 0 AND cold_ms > 0", name=op.f("ck_measurements_positive")),
        sa.CheckConstraint("low_ms <= hot_ms AND hot_ms <= high_ms", name=op.f("ck_measurements_interval")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_measurements_device_id"),
        sa.PrimaryKeyConstraint("id", name="pk_measurements"),
    )
    op.create_index("ix_measurements_newest", "measurements", ["device_id", "item_key", "received_at"], unique=False)
    op.create_index(
        "ix_measurements_table",
        "measurements",
        ["device_id", "runtime", "provider", "precision", "threads"],
        unique=False,
    )
    op.create_table(
        "supernets",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("space", sa.JSON(), nullable=False),
        sa.Column("checkpoint_sha256", sa.String(), nullable=False),
        sa.Column("importance", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(checkpoint_sha256) = 64", name=op.f("ck_supernets_checkpoint_sha256")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_supernets_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_supernets"),
        sa.UniqueConstraint("job_id", name="uq_supernets_job_id"),
    )
    op.create_table(
        "calibrations",
        sa.Column("edition_id", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fetch_ms_per_mib", sa.Double(), nullable=False),
        sa.Column("slope", sa.Double(), nullable=False),
        sa.Column("drift", sa.Double(), nullable=False),
        sa.Column("margin", sa.Double(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("points", sa.JSON(), nullable=False),
        sa.Column("measurement", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_calibrations_revision")),
        sa.CheckConstraint(
            "slope > 0 AND drift > 0 AND margin >= 0 AND fetch_ms_per_mib >= 0", name=op.f("ck_calibrations_numbers")
        ),
        sa.ForeignKeyConstraint(["edition_id"], ["editions.id"], name="fk_calibrations_edition_id"),
        sa.PrimaryKeyConstraint("edition_id", "revision", name="pk_calibrations"),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_leases_agent_id"),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
    )
    op.create_index("ix_leases_agent_id", "leases", ["agent_id"], unique=False)
    op.create_index("ix_leases_open", "leases", ["ended_at", "expires_at"], unique=False)
    op.create_table(
        "rows",
        sa.Column("edition_id", sa.String(), nullable=False),
        sa.Column("block_key", sa.String(), nullable=False),
        sa.Column("block", sa.JSON(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("channels_in", sa.Integer(), nullable=False),
        sa.Column("channels_out", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("hot_ms", sa.Double(), nullable=False),
        sa.Column("cold_ms", sa.Double(), nullable=False),
        sa.Column("converged", sa.Boolean(), nullable=False),
        sa.Column("measurement_id", sa.String(), nullable=False),
        sa.CheckConstraint("latency_ms > 0 AND hot_ms > 0 AND cold_ms > 0", name=op.f("ck_rows_positive")),
        sa.ForeignKeyConstraint(["edition_id"], ["editions.id"], name="fk_rows_edition_id"),
        sa.ForeignKeyConstraint(["measurement_id"], ["measurements.id"], name="fk_rows_measurement_id"),
        sa.PrimaryKeyConstraint("edition_id", "block_key", name="pk_rows"),
    )
    op.create_index("ix_rows_kind", "rows", ["edition_id", "kind", "channels_in", "channels_out"], unique=False)
    op.create_index("ix_rows_measurement_id", "rows", ["measurement_id"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("item_key", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("block", sa.JSON(), nullable=True),
        sa.Column("graph_sha256", sa.String(), nullable=False),
        sa.Column("graph_bytes", sa.BigInteger(), nullable=False),
        sa.Column("execution", sa.JSON(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_id", sa.String(), nullable=True),
        sa.Column("measurement_id", sa.String(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failure", sa.JSON(), nullable=True),
        sa.Column("silences", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(state = 'done') = (measurement_id IS NOT NULL)", name=op.f("ck_tasks_done")),
        sa.CheckConstraint("state <> 'failed' OR failure IS NOT NULL", name=op.f("ck_tasks_failed")),
        sa.CheckConstraint("state <> 'leased' OR (lease_id IS NOT NULL AND attempt > 0)", name=op.f("ck_tasks_leased")),
        sa.CheckConstraint("state <> 'pending' OR lease_id IS NULL", name=op.f("ck_tasks_pending")),
        sa.CheckConstraint(
            "state IN ('pending', 'leased', 'done', 'failed', 'cancelled')", name=op.f("ck_tasks_state")
        ),
        sa.CheckConstraint("attempt >= 0 AND failures >= 0 AND silences >= 0", name=op.f("ck_tasks_counts")),
        sa.CheckConstraint("length(graph_sha256) = 64", name=op.f("ck_tasks_graph_sha256")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_tasks_device_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_tasks_job_id"),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name="fk_tasks_lease_id"),
        sa.ForeignKeyConstraint(["measurement_id"], ["measurements.id"], name="fk_tasks_measurement_id"),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint("job_id", "round", "item_key", name="uq_tasks_job_id_round_item_key"),
    )
    op.create_index("ix_tasks_job", "tasks", ["job_id", "state"], unique=False)
    op.create_index("ix_tasks_lease_id", "tasks", ["lease_id"], unique=False)
    op.create_index("ix_tasks_next", "tasks", ["device_id", "state", "position"], unique=False)


def downgrade() -> None:
    op.drop_table("tasks")
    op.drop_table("rows")
    op.drop_table("leases")
    op.drop_table("calibrations")
    op.drop_table("supernets")
    op.drop_table("measurements")
    op.drop_table("job_events")
    op.drop_table("editions")
    op.drop_table("busy_machines")
    op.drop_table("artifacts")
    op.drop_table("agents")
    op.drop_table("jobs")
    op.drop_table("graphs")
    op.drop_table("devices")
    if op.get_bind().dialect.name == "postgresql":
        for table in APPEND_ONLY:
            op.execute(f"DROP FUNCTION {table}_append_only()")
