"""The official SDK of A2A 0.3 as a client of one agent: client.py URL JSONRPC|HTTP+JSON

The bearer token comes in TOKEN. Says `ok` at its end; whatever is not as it should be is an exception.
"""

import asyncio
import os
import sys
import uuid

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientHTTPError, A2AClientJSONRPCError
from a2a.types import (
    DataPart,
    Message,
    MessageSendConfiguration,
    Part,
    PushNotificationConfig,
    Role,
    TaskArtifactUpdateEvent,
    TaskIdParams,
    TaskPushNotificationConfig,
    TaskQueryParams,
    TaskState,
    TaskStatusUpdateEvent,
    TextPart,
)

PATIENCE = 60


def message(*parts, task=None):
    return Message(
        message_id=str(uuid.uuid4()),
        role=Role.user,
        parts=[Part(root=part) for part in parts],
        task_id=task and task.id,
        context_id=task and task.context_id,
    )


def text(of):
    return ''.join(p.root.text for a in of.artifacts or [] for p in a.parts if p.root.kind == 'text')


async def ask(client, *parts, task=None, **how):
    """Sends, and takes the last of what comes."""
    last = None
    async for event in client.send_message(message(*parts, task=task), **how):
        last = event
    assert isinstance(last, tuple), last
    return last[0]


async def refused(awaitable, code):
    try:
        await awaitable
    except A2AClientJSONRPCError as error:
        assert error.error.code == code, error.error
    except A2AClientHTTPError as error:
        assert error.status_code in (400, 404), error
    else:
        raise AssertionError(f'expected the error {code}')


async def sends_and_gets(plain):
    task = await ask(plain, TextPart(text='say good day'))
    assert task.status.state == TaskState.completed, task
    assert text(task) == 'good day', task
    got = await plain.get_task(TaskQueryParams(id=task.id))
    assert (got.id, got.context_id, text(got)) == (task.id, task.context_id, 'good day'), got
    assert [m.role for m in got.history] == [Role.user], got.history
    assert got.history[0].parts[0].root.text == 'say good day'
    at_once = MessageSendConfiguration(blocking=False)
    begun = await ask(plain, TextPart(text='say later\nchunks 2 200'), configuration=at_once)
    assert begun.status.state in (TaskState.submitted, TaskState.working), begun
    while begun.status.state != TaskState.completed:
        await asyncio.sleep(0.02)
        begun = await plain.get_task(TaskQueryParams(id=begun.id))
    assert text(begun) == 'later', begun
    await refused(plain.get_task(TaskQueryParams(id='nowhere')), -32001)
    await refused(plain.cancel_task(TaskIdParams(id=task.id)), -32002)
    push = TaskPushNotificationConfig(
        task_id=task.id, push_notification_config=PushNotificationConfig(id='p', url='http://127.0.0.1:1/')
    )
    await refused(plain.set_task_callback(push), -32003)


async def streams(client):
    said, final, states = '', [], []
    prompt = TextPart(text='say one two three four\nchunks 4 20\nthink hm')
    async for task, update in client.send_message(message(prompt)):
        if isinstance(update, TaskArtifactUpdateEvent):
            said += ''.join(p.root.text for p in update.artifact.parts)
        if isinstance(update, TaskStatusUpdateEvent):
            final.append(update.final)
            states.append(update.status.state)
    assert said == 'one two three four', said
    assert final[-1] is True and not any(final[:-1]), final
    assert states[-1] == TaskState.completed, states
    assert text(task) == said, task


async def watches_and_cancels(client):
    begun = asyncio.Event()
    seen = {}

    async def run():
        async for task, update in client.send_message(message(TextPart(text='hang'))):
            seen['task'] = task
            seen['last'] = update
            begun.set()

    async def watch():
        last = None
        async for _, update in client.resubscribe(TaskIdParams(id=seen['task'].id)):
            watched.set()
            last = update
        return last

    watched = asyncio.Event()
    running = asyncio.create_task(run())
    await begun.wait()
    watching = asyncio.create_task(watch())
    await watched.wait()
    canceled = await client.cancel_task(TaskIdParams(id=seen['task'].id))
    assert canceled.status.state == TaskState.canceled, canceled
    last = await watching
    await running
    for update in (last, seen['last']):
        assert update.final and update.status.state == TaskState.canceled, update


def approvals(task):
    """What the task waits for, as it says it to programs."""
    found = [p.root.data['approvals'] for p in task.status.message.parts if p.root.kind == 'data']
    assert len(found) == 1 and len(found[0]) == 1, task.status
    return found[0][0]


async def approves(client):
    for word in ('approve', 'deny'):
        task = await ask(client, TextPart(text='call tools/echo {"text": "deep"}'))
        assert task.status.state == TaskState.input_required, task
        asked = approvals(task)
        assert asked['arguments'] == {'text': 'deep'}, asked
        verdict = {'approval': asked['approval'], 'decision': word, 'digest': asked['digest']}
        wrong = {**verdict, 'digest': '0' * 64}
        await refused(ask(client, DataPart(data=wrong), task=task), -32602)
        done = await ask(client, DataPart(data=verdict), task=task)
        assert done.status.state == TaskState.completed, done
        assert ('deep' in text(done)) == (word == 'approve'), text(done)
        await refused(ask(client, DataPart(data=verdict), task=task), -32004)


async def main(url, transport):
    headers = {'authorization': f'Bearer {os.environ["TOKEN"]}'}
    async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=PATIENCE) as http:
        card = await A2ACardResolver(http, url).get_agent_card()
        assert card.protocol_version == '0.3.0' and card.capabilities.streaming, card
        assert card.security == [{'bearer': []}], card.security
        assert card.security_schemes['bearer'].root.scheme == 'bearer', card.security_schemes
        assert card.url.rstrip('/') == url.rstrip('/'), card.url

        def client(streaming):
            config = ClientConfig(
                streaming=streaming,
                httpx_client=http,
                supported_transports=[transport],
            )
            return ClientFactory(config).create(card)

        await sends_and_gets(client(streaming=False))
        await streams(client(streaming=True))
        await watches_and_cancels(client(streaming=True))
        await approves(client(streaming=False))
        await approves(client(streaming=True))
    print('ok')


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), PATIENCE))
